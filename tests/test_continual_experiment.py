"""The experiment on streams, whole, on a tiny random model: every option's row, table and matrix, and nothing lost."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from experiments import continual
from experiments.continual import PAPER, SMOKE, Config, retention
from seal_jax.domains import squad
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.run import session, streams
from seal_jax.seal.continual import Retention
from seal_jax.types import PROJECTIONS, Compute
from tests import tiny

pytestmark = pytest.mark.slow

OPTIONS = ("none", "replay", "replay+kl")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """Three streams of two, two at a time, on one device."""
    return dataclasses.replace(
        SMOKE,
        model=str(tiny.model_folder(tmp_path_factory.mktemp("model"))),
        prompt="implications",
        sampling=Sampling(max_tokens=12),
        answer_tokens=4,
        inner=FineTuning(PROJECTIONS, rank=4, alpha=8.0, learning_rate=2e-2, epochs=2),
        streams=3,
        options=OPTIONS,
    )


COMPUTE = Compute(chunk=2, width_cuts=(), devices=1)


def execute(config: Config, folder: Path) -> dict:
    return session.execute(continual.EXPERIMENT, config, COMPUTE, session.Place(folder), command="the command")


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> tuple[dict, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return execute(config, folder), folder


def without_seconds(results: dict) -> dict:
    """What the seed settles: all but the times."""
    results = json.loads(json.dumps(results))
    assert results.pop("timings")
    assert results.pop("machine")
    for row in results["tables"][0]["rows"]:
        assert row.pop() >= 0
    return results


def test_every_option_has_its_rows_against_the_base_model(undisturbed, config):
    results, folder = undisturbed
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (folder / "report.html").exists()
    names = ["base", "after_own_edit", "after_all_edits"]
    names += [f"{row}_{option}" for option in OPTIONS[1:] for row in names[1:]]
    assert [row["name"] for row in results["rows"]] == names
    for row in results["rows"]:
        assert (row["unit"], row["passages"], len(row["per_passage"])) == ("stream", 3, 3)
        mean = sum(row["per_passage"].values()) / 3
        assert row["accuracy"]["mean"] == pytest.approx(mean)
        assert (row["versus_base"] is None) == (row["name"] == "base")
    likely = [row["log_likelihood"]["mean"] for row in results["rows"]]  # a random model gets no answer right
    assert abs(likely[1] - likely[0]) > 1e-5
    assert abs(likely[2] - likely[1]) > 1e-5
    assert results["rows"][2]["versus_previous"]["row"] == "after_own_edit"
    assert results["ungraded"] == 0


def test_the_papers_rows_stand_beside_plain_merging_only(undisturbed):
    shown = {row["name"]: row["paper"] and row["paper"]["accuracy"] for row in undisturbed[0]["rows"]}
    assert shown.pop("base") == 0.307
    assert shown.pop("after_own_edit") == 0.415
    assert shown.pop("after_all_edits") == 0.247
    assert set(shown.values()) == {None}
    differs = undisturbed[0]["rows"][2]["paper"]["differs"]
    assert "64 streams there, 3 here" in differs
    assert "streams of 8 there, 2 here" in differs


def test_a_matrix_and_a_line_in_both_tables_for_every_option(undisturbed):
    results, _ = undisturbed
    assert len(results["matrices"]) == len(OPTIONS)
    for matrix in results["matrices"]:
        assert (len(matrix["rows"]), len(matrix["columns"])) == (3, 2)
        assert [len(row) for row in matrix["values"]] == [2, 2, 2]
    compared, differences = results["tables"]
    assert [len(row) for row in compared["rows"]] == [len(compared["columns"])] * 3
    assert [len(row) for row in differences["rows"]] == [len(differences["columns"])] * 2
    tokens = compared["columns"].index("tokens trained")
    plain, replay, _ = compared["rows"]
    assert replay[tokens] > plain[tokens]  # what is trained on again is counted


def test_every_self_edit_is_on_disk_with_what_became_of_it(undisturbed, config):
    _, folder = undisturbed
    records = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == [option for option in OPTIONS for _ in range(6)]
    passages = [passage.id for stream in streams.cut(config).streams for passage in stream]
    assert [record["passage"] for record in records[:6]] == passages
    assert all(record["losses"] for record in records if not record["problem"])


@pytest.mark.parametrize("after", [4, pytest.param(21, marks=pytest.mark.slow)])
def test_killed_and_started_again_it_ends_with_the_same_numbers(
    undisturbed, config, tmp_path, killed_after, after
):  # fmt: skip
    with killed_after(after):
        execute(config, tmp_path)
    assert without_seconds(execute(config, tmp_path)) == without_seconds(undisturbed[0])


def test_streams_share_no_passage_and_follow_from_the_seed(config):
    cut = streams.cut(config).streams
    assert [len(stream) for stream in cut] == [2, 2, 2]
    assert len({passage.id for stream in cut for passage in stream}) == 6
    assert streams.cut(config).streams == cut
    assert streams.cut(dataclasses.replace(config, data_seed=1)).streams != cut


ROWS = ("passage", "spa", "distilled_text")


@pytest.fixture(scope="module")
def by_rows(config, tmp_path_factory) -> tuple[Config, dict, Path]:
    """Two streams of two, taught in four ways, with replay and without."""
    folder = tmp_path_factory.mktemp("rows")
    read = squad.load_passages("invented", "train")[:5]
    recorded = [
        {"title": p.title, "context": p.context, "questions": [q._asdict() for q in p.questions],
         "completions": ["One line.\nAnother line."]}
        for p in read
    ]  # fmt: skip
    (folder / "edits.json").write_text(json.dumps(recorded), encoding="utf-8")
    options = {"streams": 2, "rows": ROWS, "recorded": (f"mine={folder / 'edits.json'}",), "budget": 1.0}
    own = dataclasses.replace(config, options=("none", "replay"), **options)
    return own, execute(own, folder / "run"), folder / "run"


def test_rows_of_rivals_teach_the_same_streams_with_replay_and_without(by_rows):
    _, results, folder = by_rows
    named = [way for row in ("passage", "mine", "spa", "distilled_text") for way in (row, f"{row}+replay")]
    names = [f"{stage}_{way}" for way in named for stage in ("after_own_edit", "after_all_edits")]
    assert [row["name"] for row in results["rows"]] == ["base", *names]
    assert results["rows"][-1]["label"] == "After all edits: Context distillation on mine, replay of 1"
    records = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    said = {way: [record for record in records if record["stage"] == way] for way in named}
    assert all(len(own) == 4 for own in said.values())
    for first, second in (("spa", "spa+replay"), ("mine", "distilled_text")):  # the same text
        assert [own["sequences"] for own in said[first]] == [own["sequences"] for own in said[second]]
    assert all("One line." in own["completion"] for own in said["mine"])
    assert [own["losses"][0] for own in said["mine"]] != [own["losses"][0] for own in said["distilled_text"]]
    compared, differences = results["tables"]
    trained = {row[0]: row[compared["columns"].index("tokens trained")] for row in compared["rows"]}
    for label in ("Passage alone", "SPA: seven kinds of rewriting", "Context distillation on mine"):
        assert trained[f"{label}, replay of 1"] > trained[label]
    pairs = [row[:2] for row in differences["rows"]]
    assert [f"Recorded: mine{end}" for end in (", replay of 1", "")] in pairs  # with replay and without
    assert ["Recorded: mine, replay of 1", "Passage alone, replay of 1"] in pairs  # the ways
    assert len(pairs) == 4 + 2 * 3
    (trend,) = results["trends"]
    assert (len(trend["rows"]), trend["columns"]) == (8, ["1", "2"])
    for values, row in zip(trend["values"], results["rows"][2::2], strict=True):
        assert values[-1] == row["accuracy"]  # after the last edit, on all


def test_a_run_of_rows_carries_on(by_rows, tmp_path, killed_after):
    config, results, _ = by_rows
    with killed_after(22):
        execute(config, tmp_path)
    assert without_seconds(execute(config, tmp_path)) == without_seconds(results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ("spa", "prefix")}, "--rows: 'prefix' is no row; expected some of passage, seal"),
        ({"rows": ("mixed_text",), "options": ("none", "kl")}, "--rows mixed_text has a loss of its own"),
        ({"rows": ("spa",), "budget": -1.0}, "budget is -1.0; expected at least 0"),
        ({"rows": ("spa",), "budget": math.inf}, "--budget inf: expected a multiple of the passage's tokens"),
    ],
)
def test_rows_that_cannot_teach_a_stream(config, options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **options)


def test_more_streams_than_passages_are_refused(config):
    with pytest.raises(ValueError, match=r"20 passages in its split held_out; 11 streams of 2 need 22 .*--streams"):
        streams.cut(dataclasses.replace(config, streams=11, split="held_out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("reply",), "no option 'reply'; did you mean replay"),
        (("none+kl",), "none cannot be joined"),
        (("kl", "kl"), "none of them twice"),
        ((), "expected one or more"),
    ],
)
def test_options_that_are_none_are_explained(config, options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, options=options)


def test_options_stand_for_what_they_say(config):
    config = dataclasses.replace(config, replay=None, kl=0.5)
    assert retention(config, "none") == Retention()
    assert retention(config, "replay+kl") == Retention(replay=None, kl=0.5)


def test_the_paper_preset_is_the_papers():
    """64 streams of 8, Qwen2.5-7B, its inner loop (section B.1), plain merging."""
    assert (PAPER.streams, PAPER.stream_length, PAPER.options) == (64, 8, ("none",))
    assert (PAPER.model, PAPER.data, PAPER.split, PAPER.style) == ("Qwen/Qwen2.5-7B", "squad", "held_out", "raw")
    assert (PAPER.sampling, PAPER.answer_tokens, PAPER.max_sequences) == (Sampling(512, 1.0, 0.95), 64, 30)
    inner = PAPER.inner
    assert (inner.rank, inner.alpha, inner.epochs, inner.batch_size) == (32, 64.0, 10, 1)
    assert math.isclose(inner.learning_rate, 1e-3)
    assert inner.projections == ("q_proj", "v_proj")
    assert inner.optimiser == Optimiser()


def test_the_plan_counts_what_is_replayed(config, tmp_path):
    plan = session.describe(continual.EXPERIMENT, config, COMPUTE, session.Place(tmp_path / "run"))
    steps = {
        line.split()[0]: line.split()[3]
        for line in plan.splitlines()
        if line.split()[:1] and line.split()[0] in OPTIONS
    }
    assert int(steps["replay"].replace(",", "")) == 2 * int(steps["none"].replace(",", ""))
    assert "3 streams of 2 passages" in plan
