"""Runs on puzzles: grids are drawn as they are, with what was expected beside what was tried, and tasks are counted.

`puzzle_run` is such a run's results; `python tests/test_report_arc_grids.py FOLDER` keeps its page to look at.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_jax.analysis.statistics import bootstrap_mean, paired_bootstrap, wilson
from seal_jax.report.arc_grids import COLOURS, as_grid, difference, svg
from seal_jax.report.page import write_page, write_report
from seal_jax.report.results import read_runs
from seal_jax.report.sections import as_text
from tests.test_report import HOSTILE, Page, blank, interval, write_sample_run

TASKS = 8
STAGES = {  # label, tries at each task, of which solved
    "base": ("In-context learning", 1, [0, 0, 0, 0, 0, 0, 1, 0]),
    "fixed": ("Fixed settings", 1, [1, 1, 1, 1, 0, 1, 1, 1]),
    "self_edits_round_0": ("Own self-edits, before RL", 5, [1, 0, 3, 2, 0, 1, 4, 0]),
    "self_edits_round_1": ("Own self-edits, after round 1", 5, [5, 4, 5, 4, 2, 3, 5, 1]),
}


def puzzle_run(size: int = 3) -> tuple[dict, list[dict]]:
    """(results.json, the lines of self_edits.jsonl) of an invented run on puzzles."""
    rng = np.random.default_rng(0)
    rows = []
    for number, (name, (label, tries, solved)) in enumerate(STAGES.items()):
        share = [count / tries for count in solved]
        earlier = [[count / each for count in counts] for _, each, counts in list(STAGES.values())[:number]]
        versus = [
            {"row": row} | interval(paired_bootstrap(before, share, seed=0))
            for row, before in zip(STAGES, earlier, strict=False)
        ]
        rows.append(
            {
                "name": name,
                "label": label,
                "unit": "task",
                "passages": TASKS,
                "solved": sum(solved),
                "tried": TASKS * tries,
                "interval": "Wilson",
                "accuracy": interval(wilson(sum(solved), TASKS * tries)),
                "log_likelihood": interval(bootstrap_mean([-2.0 + x for x in share], seed=0)),
                "versus_previous": versus[-1] if versus else None,
                "versus_base": versus[0] if versus else None,
                "problems": {"learning rate out of bounds": 3} if name == "self_edits_round_0" else {},
                "per_passage": {f"easy-flip-{i}": x for i, x in enumerate(share)},
            }
        )

    def puzzle(number: int, size: int) -> dict:
        grids = [rng.integers(0, 10, (size, size + 1)) for _ in range(4)]
        flipped = [grid[:, ::-1].copy() for grid in grids]
        off = flipped[3].copy()
        off[0, :2] = (off[0, :2] + 1) % 10
        tried = [
            ("In-context learning, first", None, False),
            ("In-context learning, second", grids[3].T.tolist(), False),
            ("After round 1, first", off.tolist(), False),
            ("After round 1, second", flipped[3].tolist(), True),
        ]
        return {
            "label": f"easy-flip-{number}",
            "pairs": [[a.tolist(), b.tolist()] for a, b in zip(grids[:3], flipped[:3], strict=True)],
            "input": grids[3].tolist(),
            "expected": flipped[3].tolist(),
            "attempts": [{"label": label, "grid": grid, "right": right} for label, grid, right in tried],
        }

    items = [puzzle(0, size), puzzle(1, 2 * size), puzzle(2, 1)]
    results = {
        "name": "arc",
        "preset": "demo",
        "model": "smollm2-135m",
        "data": "easy",
        "rows": rows,
        "rounds": [{"round": 1, "passages": TASKS, "self_edits": 40, "kept": 11, "mean_reward": 0.275}],
        "grids": [{"title": "Attempts", "note": "Two at each test input.", "items": items}],
        "settings": {"samples": 5},
    }
    choice = {"data_generation": {"use_basic_augmentations": True}, "training": {"num_train_epochs": 2}}
    self_edits = [
        {
            "stage": "round 1",
            "passage": f"easy-flip-{task}",
            "title": f"easy-flip-{task}",
            "context": "",
            "sample": 0,
            "completion": json.dumps(choice),
            "problem": None,
            "sequences": ["Input:\n0 1\nOutput:\n1 0"] * 3,
            "reward": float(task % 2),
            "base_reward": 0.0,
            "kept": bool(task % 2),
            "losses": [2.0, 1.0, 0.5],
            "answers": [
                {"question": f"View {v}", "gold": "1 0", "before": "0 1", "before_correct": None, "after": "1 0"}
                for v in range(12)
            ],
        }
        for task in range(TASKS)
    ]
    return results, self_edits


def page_of(folder: Path, results: dict, self_edits: list[dict] | None = None) -> Page:
    return Page(write_report(write_sample_run(folder, results, self_edits or [])))


# ---------------------------------------------------------------------------------------------------------------------
# One grid


def painted(drawing: str) -> list[list[int]]:
    """The grid that the rectangles of a drawing show; every cell must be painted exactly once."""
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing).groups())
    cells = np.full((height, width), -1)
    for colour, path in re.findall(r'<path fill="(#\w+)" d="([^"]*)"', drawing):
        for x, y, run in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
            part = cells[int(y), int(x) : int(x) + int(run)]
            assert part.size == int(run) and (part == -1).all()
            part[:] = COLOURS.index(colour)
    return cells.tolist()


rows_of = st.integers(1, 30).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=1, max_size=30)
)


@settings(deadline=None)
@given(rows_of)
def test_a_drawing_shows_every_cell_once_in_its_colour_and_its_title_has_the_digits(grid):
    drawing = svg(grid, "Input", 180)
    assert painted(drawing) == grid
    title = re.search(r"<title>Input, (\d+) by (\d+): ([\d /]+)</title>", drawing)
    assert [[int(digit) for digit in row.split()] for row in title[3].split("/")] == grid
    assert (int(title[1]), int(title[2])) == (len(grid), len(grid[0]))
    sides = [float(side) for side in re.search(r'width="([\d.]+)" height="([\d.]+)"', drawing).groups()]
    assert max(sides) <= 180.05 and min(sides) > 0
    assert sides[0] / sides[1] == pytest.approx(len(grid[0]) / len(grid), rel=0.02)


def test_the_ten_colours_differ_and_small_grids_are_no_larger_than_they_need():
    assert len(set(COLOURS)) == 10 and COLOURS[0] == "#000000"
    assert 'width="36" height="18"' in svg([[1, 2]], "x", 180)


@pytest.mark.parametrize(
    "value",
    [None, [], [[]], [[1], []], [[1], [2, 3]], [[10]], [[-1]], [[1.0]], [[True]], [["1"]], "1 2", [1, 2], {"a": 1}]
    + [[[0] * 31], [[0]] * 31, [[0], None]],
)
def test_what_is_no_grid_is_none(value):
    assert as_grid(value) is None


def test_a_grid_of_the_largest_size_is_one():
    assert as_grid([[9] * 30] * 30) == [[9] * 30] * 30


def test_how_far_an_attempt_is_from_what_was_expected():
    assert difference([[1, 2], [3, 4]], [[1, 2], [3, 4]]) == ""
    assert difference([[1, 2], [3, 4]], [[1, 0], [0, 4]]) == "2 of 4 cells wrong"
    assert difference([[1, 2, 3]], [[1], [2], [3]]) == "1 × 3 instead of 3 × 1"


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_attempts_stand_beside_what_was_expected_and_are_marked_in_words(tmp_path):
    results, self_edits = puzzle_run()
    page = page_of(tmp_path, results, self_edits)
    words = page.words()
    for text in (
        "Attempts Two at each test input.",
        "easy-flip-0 ✓ 1 of 4 right",
        "In-context learning, first ✗ wrong no grid",
        "In-context learning, second ✗ wrong 4 × 3 instead of 3 × 4",
        "After round 1, first ✗ wrong 2 of 12 cells wrong",
        "After round 1, second ✓ right After round 1, second, 3 by 4",
    ):
        assert text in words
    drawings = [painted(drawing) for drawing in re.findall(r'<svg class="grid".*?</svg>', page.source)]
    item = results["grids"][0]["items"][0]
    shown = [grid for pair in item["pairs"] for grid in pair] + [item["input"], item["expected"]]
    assert drawings[: len(shown) + 3] == shown + [a["grid"] for a in item["attempts"] if a["grid"]]
    assert sum(tag == "article" for tag, _ in page.elements) == 3 + 6  # the puzzles, and the self-edits
    assert not {tag for tag, _ in page.elements} & {"script", "img", "link"} and "http" not in page.source


def test_a_page_without_grids_has_none(tmp_path):
    results, _ = puzzle_run()
    for grids in (None, [], [{"title": "Nothing", "items": []}], [{"title": "Nothing", "items": [{"label": "x"}]}]):
        page = page_of(tmp_path, results | {"grids": grids})
        assert "Nothing" not in page.words() and "<article>" not in page.source


def test_a_puzzle_without_a_solution_and_an_attempt_that_was_not_judged_have_their_place(tmp_path):
    results, _ = puzzle_run()
    item = results["grids"][0]["items"][0]
    item |= {"expected": None, "attempts": [{"label": "Only", "grid": [[1]], "right": "no"}], "pairs": [[[[1]], "?"]]}
    words = page_of(tmp_path, results).words()
    assert "easy-flip-0 ✗ 0 of 1 right Input Input, 3 by 4" in words  # no demonstration that could be drawn
    assert "Only ? not judged Only, 1 by 1: 1" in words


def test_many_puzzles_are_cut_and_the_page_says_so(tmp_path):
    results, _ = puzzle_run(1)
    part = results["grids"][0]
    part["items"] = [part["items"][0] | {"label": f"puzzle {i}"} for i in range(40)]
    page = page_of(tmp_path, results)
    assert "puzzle 23" in page.words() and "puzzle 24" not in page.words() and "16 more in results.json" in page.words()
    opened = [tag for tag, attributes in page.elements if tag == "details" and "open" in attributes]
    assert len(opened) == 4


def test_whatever_the_grids_hold_the_page_is_whole_and_escaped(tmp_path):
    results, self_edits = puzzle_run()
    write_sample_run(tmp_path, blank(results), blank(self_edits))
    Page(write_report(tmp_path))
    for key in ("label", "pairs", "input", "expected", "attempts"):
        for value in (None, HOSTILE, 3, [None], [[None]], [{}], [[[[1]]]], {"a": []}):
            changed = {"grids": copy.deepcopy(results["grids"])}
            changed["grids"][0]["items"][0][key] = value
            page = page_of(tmp_path, changed)
            assert "<script>" not in page.source
    results["grids"][0]["items"][0]["attempts"][3]["label"] = HOSTILE
    page = page_of(tmp_path, results)
    assert "<script>" not in page.source and "<script>alert(1)</script>" in page.text


# ---------------------------------------------------------------------------------------------------------------------
# Tasks, counted


def test_tasks_are_counted_and_the_page_says_which_interval_it_is(tmp_path):
    words = page_of(tmp_path, *puzzle_run()).words()
    assert "smollm2-135m: In-context learning 1 of 8 (12.5 %); Own self-edits, before RL 11 of 40 (27.5 %)" in words
    assert "after round 1 29 of 40 (72.5 %) (a clear gain)" in words
    assert "8 tasks. Intervals are 95 %: Wilson's where a count stands (at these tasks: others may differ" in words
    assert "Row Share Solved Against the row above, points" in words
    assert "In-context learning 12.5 % 2.2 % to 47.1 % 1 of 8" in words
    assert "after round 1 72.5 % 57.2 % to 83.9 % 29 of 40" in words
    assert "Tasks" in words and "Questions" not in words and "Test inputs" not in words
    assert "passage" not in words.lower()


def test_one_try_a_task_is_a_count_of_tasks(tmp_path):
    results, _ = puzzle_run()
    results["rows"] = results["rows"][:2]
    for row in results["rows"]:
        row["questions"] = 9
    words = page_of(tmp_path, results | {"rounds": []}).words()
    assert "smollm2-135m: In-context learning 1 of 8 (12.5 %); Fixed settings 7 of 8 (87.5 %) (a clear gain)" in words
    assert "9 test inputs, 8 tasks." in words and "Test inputs" in words


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(2e-17, 0.3, "no clear change"), (-0.3, -2e-17, "no clear change"), (0.01, 0.3, "a clear gain")],
)
def test_what_summing_leaves_of_no_difference_is_none(tmp_path, low, high, says):
    results, _ = puzzle_run()
    results["rows"][3]["versus_previous"] |= {"mean": (low + high) / 2, "low": low, "high": high}
    words = page_of(tmp_path, results).words()
    assert f"after round 1 29 of 40 (72.5 %) ({says})" in words


def test_answers_that_were_put_to_the_vote_are_not_called_ungraded(tmp_path):
    results, self_edits = puzzle_run()
    words = page_of(tmp_path, results, self_edits).words()
    assert "12 answers, which were put to the vote" in words and "not judged" not in words
    for edit in self_edits:
        edit["reward"] = None
        edit["gain"] = 0.5
    words = page_of(tmp_path, results, self_edits).words()
    assert "put to the vote" not in words and "not judged" in words


def test_a_comparison_of_runs_on_tasks_speaks_of_tasks_and_shows_counts(tmp_path):
    results, _ = puzzle_run()
    folders = [write_sample_run(tmp_path / name, results, []) for name in ("one", "two")]
    runs = read_runs(folders)
    write_page(runs, tmp_path / "out.html")
    words = Page(tmp_path / "out.html").words()
    assert "29 of 40" in words and "8 tasks" in words and "passage" not in words.lower()
    text = as_text(runs)
    assert "29 of 40" in text and "paired by task" in text and "passage" not in text


if __name__ == "__main__":
    print(write_report(write_sample_run(Path(sys.argv[1]), *puzzle_run(int(sys.argv[2]) if sys.argv[2:] else 3))))
