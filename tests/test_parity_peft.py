"""The inner loop is PEFT's, loss for loss over 80 steps; and, live, logits are those of transformers as installed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments import parity
from seal_jax.io.hub import find_model
from seal_jax.io.peft import load_peft
from seal_jax.io.weights import load_model


@pytest.mark.parametrize(("name", "which"), parity.FINE_TUNED)
def test_losses_are_those_of_peft_at_every_step(name, which):
    folder = parity.GOLDEN / "peft" / f"{name}_{which}"
    run = parity.read_golden_losses(folder)
    assert len(run.losses) == 80
    assert run.losses[:8].mean() - run.losses[-8:].mean() > 0.5  # it learned something
    row = parity.compare_small_losses(name, which, live=False)
    print(row)
    assert row.holds


def test_the_parity_of_losses_sees_a_wrong_setting(monkeypatch):
    """Half of alpha, a constant learning rate, no clipping: each is far out of bounds."""
    config, params = load_model(parity.small_files("llama32"))
    folder = parity.GOLDEN / "peft" / "llama32_qv"
    start, run = load_peft(folder, config), parity.read_golden_losses(folder)

    def difference(adapter=start):
        return np.abs(parity.losses(config, params, adapter, run, rank=32, alpha=64) - run.losses).max()

    assert difference(start.replace(scale=start.scale / 2)) > 10 * parity.BOUND
    plain = parity.Optimiser
    for change in ({"schedule": "constant"}, {"clip_norm": 1e9}):
        monkeypatch.setattr(parity, "Optimiser", lambda change=change: dataclasses.replace(plain(), **change))
        assert difference() > 10 * parity.BOUND, change


# ---------------------------------------------------------------------------------------------------------------------
# Live: `make parity`


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("torch")
    from experiments.benchmark import peers

    try:
        files = find_model("smollm2-135m")
    except OSError as error:
        pytest.skip(f"SmolLM2-135M is neither cached nor downloadable: {error}")
    return files, *load_model(files), peers.load(files)


@pytest.mark.peers
@pytest.mark.parametrize("name", parity.CHECKPOINTS)
def test_logits_and_greedy_tokens_live(name):
    pytest.importorskip("torch")
    row = parity.compare_small_logits(name, live=True)
    print(row)
    assert row.holds


@pytest.mark.peers
@pytest.mark.parametrize(("name", "which"), parity.FINE_TUNED)
def test_losses_live(name, which):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    row = parity.compare_small_losses(name, which, live=True)
    print(row)
    assert row.holds


@pytest.mark.peers
def test_smollm2_logits_live(smollm2):
    row = parity.compare_smollm2_logits(*smollm2)
    print(row)
    assert row.holds


@pytest.mark.peers
@pytest.mark.parametrize("which", parity.TARGETS)
def test_smollm2_losses_live(smollm2, which):
    pytest.importorskip("peft")
    row = parity.compare_smollm2_losses(*smollm2, which)
    print(row)
    assert row.holds
