"""Trees that weigh figures: fitted to what can be told, the same every time, read back as written."""

from __future__ import annotations

import json

import numpy as np

from seal_jax.graders import trees


def test_what_two_figures_say_together_is_learned():
    figures = np.random.default_rng(0).normal(size=(2000, 5))
    right = (figures[:, 1] > 0) != (figures[:, 3] > 0)  # neither alone says anything
    fitted = trees.fit(figures, right)
    assert ((fitted.score(figures) > 0) == right).mean() > 0.9
    assert np.array_equal(trees.fit(figures, right).leaf, fitted.leaf)


def test_trees_are_read_back_as_they_were_written(tmp_path, monkeypatch):
    figures = np.random.default_rng(1).normal(size=(300, 3))
    fitted = trees.fit(figures, figures[:, 0] > 0.3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trees.json").write_text(trees.to_json(fitted, ["a", "b", "c"]), encoding="utf-8")
    monkeypatch.setattr(trees.resources, "files", lambda package: tmp_path)
    assert json.loads((tmp_path / "data" / "trees.json").read_text())["trees"]
    read = trees.load(["c", "a", "b"])  # by name: in whatever order the figures come
    np.testing.assert_allclose(read.score(figures[:, [2, 0, 1]]), fitted.score(figures))
