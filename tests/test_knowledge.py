"""The experiments beside the main one, in this process: recorded self-edits, rewards compared, options of squad."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import continual, credit, evaluate_edits, rewards, rivals, squad
from seal_jax.domains.passages import INVENTED, Passage, load_recorded
from seal_jax.run import command as command_line
from seal_jax.run import plan, runtime, session
from seal_jax.run import rivals as rows
from seal_jax.seal.writers import size
from tests import judge_server, tiny
from tests.test_entigraph import make_loop
from tests.test_experiment import pieces

pytestmark = pytest.mark.slow

Command = Callable[..., int]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def command(model: Path, monkeypatch) -> Command:
    """Runs an experiment's command line here; JAX runs already, on one device."""
    monkeypatch.setattr(runtime, "start", lambda devices: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(experiment: session.Experiment, *arguments: str) -> int:
        options = ["--model", str(model), "--compute.devices", "1", "--prompt", "implications"]
        return command_line.main(experiment, ["smoke", *options, *arguments])

    return run


def invented(count: int) -> list[dict]:
    records = json.loads(INVENTED.read_text(encoding="utf-8"))
    return [{name: r[name] for name in ("title", "context", "questions")} for r in records if r["split"] == "train"][
        :count
    ]


def write_edits(path: Path, records: list[dict], *completions: str) -> Path:
    path.write_text(json.dumps([r | {"completions": list(completions)} for r in records]), encoding="utf-8")
    return path


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------------------
# evaluate_edits


def test_recorded_self_edits_are_scored_and_compared(command: Command, tmp_path: Path, capsys):
    records = invented(4)
    first = write_edits(tmp_path / "first.json", records, "A line.\nAnother one.", "A second self-edit.")
    second = write_edits(tmp_path / "second.json", records[1:], "Something else.")
    again = write_edits(tmp_path / "again.json", records, "A line.\nAnother one.")
    folder = tmp_path / "run"
    edits = [f"one={first}", str(second), f"same={again}"]
    status = command(evaluate_edits.EXPERIMENT, "--edits", *edits, "--run-folder", str(folder))
    printed = capsys.readouterr().out
    assert status == 0
    found = results(folder)
    assert [row["name"] for row in found["rows"]] == ["base", "passage", "one", "edits of second", "same"]
    assert all(row["passages"] == 3 for row in found["rows"])  # those that every file has
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["one"]["log_likelihood"] == rows["same"]["log_likelihood"]  # smoke scores one self-edit a passage
    assert rows["one"]["log_likelihood"] != rows["edits of second"]["log_likelihood"]
    assert rows["passage"]["log_likelihood"] != rows["base"]["log_likelihood"]
    pairs = {(row[0], row[1]): row[3] for row in found["tables"][0]["rows"]}
    assert len(pairs) == 10
    assert pairs["same", "one"] == "+0.000 [+0.000, +0.000]"
    assert "1 passages are left out" in printed
    assert "Paired differences" in printed
    lines = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    assert {line["completion"] for line in lines if line["stage"] == "one"} == {"A line.\nAnother one."}

    # A run folder lends its self-edits in turn.
    lent = load_recorded(folder, "one")
    assert {p.title: p.completions for p in lent} == {r["title"]: ("A line.\nAnother one.",) for r in records[1:]}
    with pytest.raises(ValueError, match=r"no self-edits of stage None; it has 'passage', 'one'"):
        load_recorded(folder)
    with pytest.raises(FileNotFoundError, match=r"has no self_edits\.jsonl"):
        load_recorded(tmp_path)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([], "--edits is missing"),
        (["first.json", "first.json"], "two sources are called 'edits of first'"),
        (["first.json", "other.json"], "no passage has completions in all of edits of first (2), edits of other (1)"),
        (["nothing.json"], "no data set and no file is called"),
    ],
)
def test_sources_that_cannot_be_compared(command: Command, tmp_path, monkeypatch, capsys, edits, message):
    monkeypatch.chdir(tmp_path)
    records = invented(3)
    write_edits(tmp_path / "first.json", records[:2], "A line.")
    write_edits(tmp_path / "other.json", records[2:], "A line.")
    chosen = ["--edits", *edits] if edits else []
    assert command(evaluate_edits.EXPERIMENT, *chosen) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# rivals


def test_rivals_are_rows_over_the_same_passages(command: Command, tmp_path: Path, capsys, killed_after):
    """All rows, with two recorded files; killed on the way and carried on, it ends as it does undisturbed."""
    records = invented(4)
    first = write_edits(tmp_path / "first.json", records, "A line.\nAnother one.", "Two.\nThree.")
    second = write_edits(tmp_path / "second.json", records[1:], "Something else.")
    options = ["--recorded", f"one={first}", f"two_text={second}", "--run-folder"]
    assert command(rivals.EXPERIMENT, *options, str(tmp_path / "run")) == 0
    printed, found = capsys.readouterr().out, results(tmp_path / "run")
    names = ["base", "passage", "seal", "one", "two_text", "entigraph", "spa", "active_reading", "distilled_questions"]
    assert [row["name"] for row in found["rows"]] == [*names, "prefix", "sdft", "distilled_text", "mixed_text"]
    assert all(row["passages"] == 3 for row in found["rows"])
    labels = {row["name"]: row["label"] for row in found["rows"]}
    assert labels["mixed_text"] == "MixSD on one"
    likely = {row["name"]: row["log_likelihood"]["mean"] for row in found["rows"]}
    pairs = (("one", "distilled_text"), ("distilled_text", "mixed_text"), ("passage", "spa"), ("one", "two_text"))
    for row, same in pairs:
        assert likely[row] != likely[same]
    learnt, cost, against = found["tables"]
    assert [row[0] for row in learnt["rows"]] == [row[0] for row in cost["rows"]] == [*labels.values()][1:]
    assert len(against["rows"]) == 13 * 12 // 2
    spent = {row[0]: row for row in cost["rows"]}
    assert spent["Passage alone"][3] == "0" and float(spent["SPA: seven kinds of rewriting"][5]) > 0
    assert spent[labels["distilled_text"]][4] == spent["Recorded: one"][4]  # the same text, another loss
    assert spent[labels["prefix"]][3:5] == spent[labels["distilled_questions"]][3:5]  # and another adapter
    for part in ("What is learned", "What it costs, a passage", "others'", "kept, %"):  # a heading takes several lines
        assert part in printed
    edits = [json.loads(line) for line in (tmp_path / "run" / "self_edits.jsonl").read_text().splitlines()]
    kept = [edit for edit in edits if edit["stage"] == "one"]
    assert len(kept) == 3 and all("A line." in edit["completion"] for edit in kept)
    other = [edit for edit in edits if edit["stage"] == "two_text"]
    assert len(other) == 3 and all(edit["completion"] == "Something else." for edit in other)
    asked = {record["title"]: len(record["questions"]) for record in records}
    assert all(len(edit["answers"]) == asked[edit["title"]] for edit in kept)  # what is asked beside is not among them

    with killed_after(25):
        command(rivals.EXPERIMENT, *options, str(tmp_path / "again"))
    assert command(rivals.EXPERIMENT, *options, str(tmp_path / "again")) == 0
    again = results(tmp_path / "again")
    assert again["rows"] == found["rows"]
    assert again["tables"][0] == learnt
    assert again["tables"][2] == against
    assert [row[:-1] for row in again["tables"][1]["rows"]] == [row[:-1] for row in cost["rows"]]  # the last is seconds


def test_text_that_rows_share_is_written_for_the_first_of_them():
    config = dataclasses.replace(rivals.SMOKE, rows=("mixed_text", "passage", "distilled_text"))
    shown = {stage.name: stage.phases for stage in rows.read(config).stages[2:]}
    both, reading = (plan.WRITE, plan.TRAIN), (plan.TRAIN,)
    assert shown == {"passage": reading, "distilled_text": both, "mixed_text": reading}
    asked = rows.read(dataclasses.replace(config, rows=("prefix", "sdft", "distilled_questions")))
    shown = {stage.name: stage.phases for stage in asked.stages[2:]}
    assert shown == {"distilled_questions": both, "prefix": reading, "sdft": reading}
    alone = rows.read(dataclasses.replace(config, rows=("prefix",)))
    assert alone.stages[2].phases == both
    more = rows.read(dataclasses.replace(config, rows=("seal", "distilled_text")))
    assert {stage.name: stage.phases for stage in more.stages[2:]} == {"seal": both, "distilled_text": reading}


def test_a_smaller_budget_is_what_a_run_of_that_budget_is(command: Command, tmp_path: Path, capsys):
    """Two budgets in one run, written once, against a run of each: the same answers and likelihoods by passage."""
    options = [
        "--rows",
        "passage",
        "seal",
        "spa",
        "--inner.learning-rate",
        "0.02",
        "--max-sequences",
        "20",
        "--budgets",
    ]
    for name, budgets in {"both": ("1", "2"), "1": ("1",), "2": ("2",)}.items():
        assert command(rivals.EXPERIMENT, *options, *budgets, "--run-folder", str(tmp_path / name)) == 0
    assert "Accuracy over the budget, in figures" in capsys.readouterr().out
    both, one, two = (results(tmp_path / name) for name in ("both", "1", "2"))
    assert [row["name"] for row in both["rows"]] == ["base", "passage", "seal", "spa"]
    for row, other in zip(both["rows"], two["rows"], strict=True):  # the tables are of the largest budget
        assert row["log_likelihood"]["mean"] == pytest.approx(other["log_likelihood"]["mean"], abs=1e-5)

    def tried(folder: str, stage: str) -> dict[str, tuple[list[str], float]]:
        lines = (tmp_path / folder / "self_edits.jsonl").read_text().splitlines()
        own = [edit for edit in map(json.loads, lines) if edit["stage"] == stage]
        assert len(own) == 3 and {edit["sample"] for edit in own} == {0}
        return {edit["passage"]: (edit["sequences"], edit["log_likelihood"]) for edit in own}

    for stage in ("seal", "spa"):
        small, alone, large = tried("both", f"{stage} x 1"), tried("1", stage), tried("both", stage)
        for passage, (sequences, likely) in small.items():
            assert sequences == alone[passage][0] and likely == pytest.approx(alone[passage][1], abs=1e-5)
            assert len("".join(sequences)) < len("".join(large[passage][0])) and sequences[-1] == large[passage][0][-1]
            assert likely != large[passage][1]
    (trend,), table = both["trends"], both["tables"][0]
    assert (trend["columns"], trend["rows"]) == (["0", "1", "2"], [row["label"] for row in both["rows"][2:]])
    for row, values in zip(both["rows"][2:], trend["values"], strict=True):
        assert values[0] == both["rows"][1]["accuracy"] and values[2] == row["accuracy"]
    assert [row[:2] for row in table["rows"]] == [[label, x] for label in trend["rows"] for x in ("1 x", "2 x")]
    trained = [float(row[7].replace(",", "")) for row in table["rows"]]
    assert trained[0] < trained[1] and trained[2] < trained[3]
    assert table["rows"][0][4] == "" and table["rows"][2][4]  # against SEAL, which is not against itself
    assert (one["trends"], len(one["tables"])) == ([], 3)


@pytest.mark.parametrize("experiment", [rivals.EXPERIMENT, continual.EXPERIMENT], ids=["rivals", "continual"])
def test_a_plan_has_a_teacher_where_a_row_has_one(command: Command, tmp_path: Path, capsys, experiment):
    """And only there a context must hold what a teacher reads."""
    short = tiny.model_folder(tmp_path / "short", context_length=320)
    options = ["--dry-run", "--run-folder", str(tmp_path / "run"), "--rows", "passage", "spa"]
    options = ["--options", "none", *options] if experiment is continual.EXPERIMENT else options
    assert command(experiment, *options) == 0
    assert "a teacher's hidden states" not in capsys.readouterr().out
    assert command(experiment, *options, "distilled_text") == 0
    assert "a teacher's hidden states" in capsys.readouterr().out
    assert command(experiment, *options, "--model", str(short)) == 0
    assert command(experiment, *options, "distilled_text", "--model", str(short)) == 2
    assert "a teacher reads a passage" in capsys.readouterr().err


def test_a_recorded_line_counts_for_the_budget_as_it_is_cut(tmp_path: Path):
    """Of twenty tokens, the first line would hold all; a step has room for eight of it."""
    lm, loop = tiny.language_model([*"Tabcd"]), make_loop(tmp_path)
    loop = loop._replace(trainer=loop.trainer._replace(shapes=loop.trainer.shapes._replace(widths=(8,))))
    here = SimpleNamespace(lm=lm, loop=loop, config=dataclasses.replace(rivals.SMOKE, budgets=(4.0,)))
    texts = [" ".join("a" * 30), "b c d", "d d"]
    found = rows.recorded(here, Passage("t", "T", "a b c d", ()), texts)
    assert [size(example, lm.codec) for example in found.examples] == [8, 4, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "spaa"], "--rows: 'spaa' is no row; expected some of passage, seal"),
        (["--budgets", "-1"], "each of --budgets is -1.0; expected at least 0"),
        (["--budgets", "4", "2"], "--budgets 4 2: expected one or more, each larger than the one before"),
        (["--budgets", "2", "2"], "--budgets 2 2: expected one or more, each larger than the one before"),
        (["--budgets", "1", "nan"], "--budgets 1 nan: expected one or more, each larger than the one before"),
        (["--budgets", "inf"], "--budgets inf: expected one or more, each larger than the one before, none infinite"),
        (["--recorded", "spa=first.json"], "--recorded: a row of the table is called 'spa'"),
    ],
)
def test_rivals_that_cannot_be_compared(command: Command, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    write_edits(tmp_path / "first.json", invented(2), "A line.")
    with contextlib.suppress(SystemExit):
        assert command(rivals.EXPERIMENT, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# ---------------------------------------------------------------------------------------------------------------------
# rewards


def test_rewards_are_compared_over_seeds_and_a_kill_costs_nothing(command: Command, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    options = ["--inner.learning-rate", "0.02", "--sampling.max-tokens", "12", "--run-folder", str(folder)]
    assert command(rewards.EXPERIMENT, *options) == 0
    found = results(folder)
    (table,) = found["tables"]
    assert [(row[0], row[1]) for row in table["rows"]] == [
        (reward, seeds)
        for reward in ("accuracy", "accuracy, then likelihood", "log-likelihood", "probability")
        for seeds in (1, 2)
    ]
    assert [row[6] for row in table["rows"][:2]] == ["0.33", "0.67"]
    assert "3 passages, 6 self-edits, 2 training seeds each" in table["note"]
    assert "reliability" in capsys.readouterr().out
    journal = pieces(folder / "journal.jsonl")
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    assert command(rewards.EXPERIMENT, *options) == 0
    assert results(folder)["tables"] == found["tables"]
    by_name = itemgetter("name")  # adapters finish in another order where others were finished before
    assert sorted(pieces(folder / "journal.jsonl"), key=by_name) == sorted(journal, key=by_name)


def test_lines_are_credited_and_a_kill_costs_nothing(command: Command, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    options = ["--sampling.max-tokens", "24", "--sampling.temperature", "1", "--run-folder", str(folder)]
    assert command(credit.EXPERIMENT, *options) == 0
    found = results(folder)
    table, ranked = found["tables"]
    methods = ["left out", "by gradient", "by gradient, without curvature"]
    assert [row[0] for row in table["rows"]] == methods
    assert len(found["credit"]) == 2 and "Credit for each line" in capsys.readouterr().out
    for line in found["credit"]:
        assert all(len(own) == len(line["lines"]) for name in methods for own in line[name])
    assert len(ranked["rows"]) == sum(len(line["lines"]) for line in found["credit"])
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:5]))  # within the first method's seeds
    assert command(credit.EXPERIMENT, *options) == 0
    assert results(folder)["credit"] == found["credit"]


def test_recorded_self_edits_need_two_a_passage(command: Command, tmp_path: Path, capsys):
    file = write_edits(tmp_path / "edits.json", invented(3), "A line.")
    assert command(rewards.EXPERIMENT, "--edits", str(file)) == 2
    assert "0 passages with two self-edits or more; --passages asks for 3" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# squad's baselines and variants


def test_every_variant_of_the_main_experiment_in_one_run(command: Command, model: Path, tmp_path: Path):
    records = invented(12)
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records), encoding="utf-8")
    external = write_edits(tmp_path / "external.json", records, "An external line.", "Another one.")
    other = tiny.model_folder(tmp_path / "writer", seed=1)
    folder = tmp_path / "run"
    status = command(
        squad.EXPERIMENT, "--data", str(data), "--external", str(external), "--entigraph", "pairs",
        "--writer", str(other), "--outer.validation", "2", "--outer.signal", "log_likelihood",
        "--sampling.max-tokens", "12", "--run-folder", str(folder),
    )  # fmt: skip
    assert status == 0
    found = results(folder)
    names = [row["name"] for row in found["rows"]]
    assert names == ["base", "passage", "external", "entigraph_pairs", "self_edits_round_0", "self_edits_round_1"]
    assert found["validation"]["passages"] == 2
    assert len(found["validation"]["reward"]) == 2
    chosen = found["validation"]["chosen_round"]
    assert "chosen on 2 validation passages" in found["rows"][4 + chosen]["label"]
    assert "chosen" not in found["rows"][5 - chosen]["label"]
    lines = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    asked = {stage: {line["passage"] for line in lines if line["stage"] == stage} for stage in ("passage", "round 1")}
    validation = {line["passage"] for line in lines if line["stage"].startswith("validation")}
    assert len(validation) == 2
    assert not (asked["passage"] & asked["round 1"]) | (validation & (asked["passage"] | asked["round 1"]))
    external_lines = [line for line in lines if line["stage"] == "external"]
    assert {line["completion"] for line in external_lines} == {"An external line.", "Another one."}
    assert found["rounds"][0]["mean_words"] > 0


def test_a_file_of_external_data_that_lacks_a_passage(command: Command, tmp_path: Path, capsys):
    file = write_edits(tmp_path / "external.json", invented(3), "A line.")
    assert command(squad.EXPERIMENT, "--external", str(file)) == 2
    assert "no completion for 3 of 3 passages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "reward"),
    [("advantages", "alone"), ("preferences", "alone"), ("imitation", "alone"), ("advantages", "set")],
)
def test_other_outer_loops_in_a_whole_run(command: Command, tmp_path: Path, capsys, method, reward):
    records = invented(5)
    data, edits = (
        write_edits(tmp_path / name, records, *texts) for name, texts in (("a", ()), ("b", ("One.", "Two.")))
    )
    options = ["--data", str(data), "--outer.method", method, "--outer.signal", "log_likelihood"]  # nothing is right
    options += ["--outer.reward", reward]
    folder = tmp_path / "run"
    if method == "imitation":
        few = ["--outer.recorded", str(write_edits(tmp_path / "few", records, "One."))]
        assert command(squad.EXPERIMENT, *options, *few) == 2
        assert "--outer.recorded" in (said := capsys.readouterr().err)
        assert "fewer than 2 completions for 2 of 2 passages" in said
        options += ["--outer.recorded", str(edits)]
    assert command(squad.EXPERIMENT, *options, "--run-folder", str(folder)) == 0
    (record,) = results(folder)["rounds"]
    assert record["self_edits"] == 4 and record["sft_losses"] and record["mean_words"] > 0
    assert list(record["problems"]) == ["answers cut off at the limit of tokens"]  # no task was skipped
    assert record["kept"] == (4 if method == "imitation" else 2)  # of two, one lies above their mean
    lines = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    written = [line["completion"] for line in lines if line["stage"] == "round 1"]
    assert (written == ["One.", "Two."] * 2) == (method == "imitation")
    added = {line["added"] is not None for line in lines if line["stage"] == "round 1"}
    assert added == {reward == "set"}
    assert "Distinct words" in (folder / "report.html").read_text(encoding="utf-8")


def test_winners_are_imitated_by_their_lines(command: Command, tmp_path: Path, capsys):
    rule = ["--outer.credit", "lines", "--outer.signal", "log_likelihood", "--sampling.max-tokens", "24"]
    assert command(squad.EXPERIMENT, *rule, "--outer.method", "preferences") == 2
    assert "is of --outer.method rest_em" in capsys.readouterr().err
    assert command(squad.EXPERIMENT, *rule, "--writer", "other") == 2
    assert "leave out --writer" in capsys.readouterr().err
    folder = tmp_path / "run"
    assert command(squad.EXPERIMENT, *rule, "--run-folder", str(folder)) == 0
    lines = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    credited = [line for line in lines if line["credit"]]
    assert len(credited) == 2 and {line["stage"] for line in credited} == {"round 1"}  # a passage's winner
    for line in credited:
        assert line["kept"] == any(value > 0 for value in line["credit"])
        assert len(line["credit"]) == len(line["sequences"]) - 1  # the passage is no line


def test_best_of_n_trains_nothing_in_the_round(command: Command, model: Path, tmp_path: Path, capsys):
    rule = ["--outer.method", "best_of_n"]
    assert command(squad.EXPERIMENT, *rule, "--run-folder", str(tmp_path / "none")) == 2
    assert "--grader.kind model or endpoint" in capsys.readouterr().err
    judge = ["--grader.kind", "model", "--grader.model", str(model)]
    folder = tmp_path / "run"
    assert command(squad.EXPERIMENT, *rule, *judge, "--run-folder", str(folder)) == 0
    lines = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    assert all(line["losses"] == [] for line in lines if line["stage"] == "round 1")
    assert results(folder)["ungraded"] > 0  # a random model gives no readable verdict, and none of them is "wrong"
    first = json.loads((folder / "ungraded.jsonl").read_text().splitlines()[0])
    assert {"question", "gold", "answer"} <= set(first)


# ---------------------------------------------------------------------------------------------------------------------
# A judge elsewhere


def test_a_judge_that_fails_in_every_way_loses_nothing(command: Command, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", judge_server.KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    folder = tmp_path / "run"
    with judge_server.JudgeServer() as server:
        options = [
            "--grader.kind", "endpoint", "--grader.model", "judge-2026-01-01", "--grader.base-url", server.url,
            "--judge.attempts", "2", "--judge.timeout-s", "0.5",
            "--judge.concurrency", "2", "--outer.rounds", "0", "--run-folder", str(folder),
        ]  # fmt: skip
        server.misbehaviour = [
            judge_server.refuse(429, Retry_After="0"), judge_server.refuse(500), judge_server.send(b"<html>"),
            judge_server.cut, judge_server.send(b""), judge_server.hang,
        ]  # fmt: skip
        server.always = judge_server.say("yes")
        assert command(squad.EXPERIMENT, *options) == 0
        found, asked = results(folder), len(server.requests)
        verdicts = [
            answer[f"{when}_correct"]
            for line in (folder / "self_edits.jsonl").read_text().splitlines()
            for answer in json.loads(line)["answers"]
            for when in ("before", "after")
            if answer[when]
        ]
        assert verdicts.count(False) == 0  # no failure was taken for a wrong answer
        assert verdicts.count(True) > 10
        assert found["judge"]["calls"] > 10

        # Half of the work lost, the verdicts kept: what was judged is not asked again.
        lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
        server.requests.clear()
        assert command(squad.EXPERIMENT, *options, "--judge.concurrency", "1") == 0
        assert len(server.requests) <= found["ungraded"] <= 6 < asked

        # A judge that is down: the run ends, and says which answers have no verdict.
        server.always = judge_server.refuse(503)
        down = tmp_path / "down"
        capsys.readouterr()
        assert command(squad.EXPERIMENT, *options[:-1], str(down)) == 0
    said = capsys.readouterr().out
    listed = [json.loads(line) for line in (down / "ungraded.jsonl").read_text().splitlines()]
    assert len(listed) == results(down)["ungraded"] > 10
    assert {row["accuracy"]["mean"] for row in results(down)["rows"]} <= {None, 0.0}  # empty answers need no judge
    assert f"{len(listed)} answers were not graded" in said
    for path in (*folder.rglob("*"), *down.rglob("*")):
        assert not path.is_file() or judge_server.KEY.encode() not in path.read_bytes()
    assert judge_server.KEY not in said
