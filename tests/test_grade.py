"""experiments.grade: any grader over recorded answers, what it prints and writes, and how it carries on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import grade
from seal_jax.graders.agreement import agreement, split
from tests import judge_server, tiny
from tests.judge_server import KEY, JudgeServer, refuse

# (gold, answer, a judge's verdict): the rule and the judge of tests/judge_server.py agree on all but the last
ROWS = [
    ("Ada Lind", "It was Ada Lind.", True),
    ("1843", "in 1843", True),
    ("1843", "in 1851", False),
    ("the tarn", "", False),
    ("Bo", "Bo", True),
    ("Cy", "Di", False),
    ("Elm", "Elm", False),
]

TUNED_ON = ["Who did he fire?", "What does ATP mean?"]  # of the questions listed in data/passages.txt


def write(folder: Path, rows=ROWS, *, correct: bool = True, likelihoods=None) -> Path:
    path = folder / "answers.jsonl"
    lines = []
    for i, (gold, answer, verdict) in enumerate(rows):
        row = {"question": f"Question {i}?", "gold": gold, "answer": answer}
        row |= {"correct": verdict} if correct else {}
        row |= {"log_likelihood": likelihoods[i]} if likelihoods else {}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def run(path: Path, *options: str) -> tuple[dict, list[dict]]:
    """What --json and --out hold."""
    figures, graded = path.with_name("new") / "figures.json", path.with_name("new") / "graded.jsonl"
    cache = path.with_name("judge.jsonl")
    arguments = ["--answers", str(path), "--json", str(figures), "--out", str(graded), "--cache", str(cache), *options]
    assert grade.main(arguments) == 0
    return json.loads(figures.read_text()), [json.loads(line) for line in graded.read_text().splitlines()]


def test_by_rule(tmp_path, capsys):
    figures, graded = run(write(tmp_path))
    expected = agreement([True, True, False, False, True, False, True], [v for *_, v in ROWS])
    assert figures["n"] == 7
    assert figures["agreement"] == expected.agreement and figures["kappa"] == expected.kappa
    assert (figures["right"], figures["wrong"], figures["ungraded"]) == (4, 3, 0)
    assert figures["kappa_error"] > 0 and figures["answers_per_second"] > 0 and figures["seconds"] > 0
    assert figures["grader"]["kind"] == "lexical" and figures["usage"] == {}
    assert [row["verdict"] for row in graded] == [True, True, False, False, True, False, True]
    assert all(row["question"] == f"Question {i}?" for i, row in enumerate(graded))
    printed = capsys.readouterr().out
    assert "7 answers: 4 right, 3 wrong, 0 ungraded" in printed
    assert f"kappa {expected.kappa:.3f}" in printed and "precision 75.0 %, recall 100.0 %" in printed
    assert not (tmp_path / "judge.jsonl").exists()


def test_without_recorded_verdicts_there_is_nothing_to_agree_with(tmp_path, capsys):
    figures, _ = run(write(tmp_path, correct=False))
    assert (figures["n"], figures["agreement"], figures["kappa"], figures["right"]) == (7, None, None, 4)
    assert "kappa" not in capsys.readouterr().out


def test_by_recorded_likelihood(tmp_path):
    path = write(tmp_path, likelihoods=[-0.1, -0.69, -0.7, -3.0, 0.0, -1.0, -5.0])
    figures, graded = run(path, "--grader.kind", "likelihood")
    assert [row["verdict"] for row in graded] == [True, True, False, False, True, False, False]
    assert figures["agreement"] == figures["kappa"] == 1
    assert run(path, "--grader.kind", "likelihood", "--threshold", "-1")[0]["right"] == 5
    assert grade.Config(path).threshold == pytest.approx(math.log(0.5), abs=1e-4)


def test_parts_and_limit(tmp_path):
    path = write(tmp_path, [("Ada", "Ada", True)] * 40)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [*rows, *[{**rows[0], "question": question} for question in TUNED_ON]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tuned, held_out = split(rows)
    assert len(tuned) == len(TUNED_ON) and len(held_out) == 40
    for part, kept in (("all", rows), ("tuned", tuned), ("held-out", held_out)):
        figures, graded = run(path, "--part", part)
        assert figures["part"] == part and [row["question"] for row in graded] == [row["question"] for row in kept]
    assert run(path, "--part", "held-out", "--limit", "3")[1] == [{**row, "verdict": True} for row in held_out[:3]]


@pytest.fixture
def server(monkeypatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    with JudgeServer() as running:
        yield running


def endpoint(server: JudgeServer) -> list[str]:
    options = {
        "grader.kind": "endpoint", "grader.model": "judge", "grader.base-url": server.url,
        "judge.key-variable": "JUDGE_KEY",
        "judge.attempts": "2", "judge.concurrency": "1",
    }  # fmt: skip
    return [text for name, value in options.items() for text in (f"--{name}", value)]


def test_by_an_endpoint_that_fails_and_then_carries_on(server, tmp_path, capsys):
    path = write(tmp_path)
    server.misbehaviour = [judge_server.reply, refuse(500), refuse(500), refuse(429), judge_server.reply]
    figures, graded = run(path, *endpoint(server), "--judge.price-in", "2", "--judge.price-out", "8")
    assert [row["verdict"] for row in graded] == [True, None, False, False, True, False, True]
    assert (figures["n"], figures["ungraded"]) == (6, 1)
    assert figures["agreement"] == pytest.approx(5 / 6)  # of those graded
    assert figures["usage"]["failed"] == 1 and figures["usage"]["retries"] == 2
    printed = capsys.readouterr()
    assert "1 ungraded" in printed.out and "Question 1? -> in 1843" in printed.out and "USD" in printed.out
    assert "1 of 6 prompts got no reply" in printed.err

    before = len(server.requests)
    figures, graded = run(path, *endpoint(server))
    assert len(server.requests) == before + 1  # what was ungraded, and nothing else
    assert figures["ungraded"] == 0 and graded[1]["verdict"] is True
    assert figures["usage"]["cached"] == 5
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 4 and all(KEY not in file.read_text() for file in files)


def test_nothing_graded_is_no_agreement(server, tmp_path):
    server.always = refuse(500)
    figures, _ = run(write(tmp_path, ROWS[:2]), *endpoint(server))
    assert (figures["n"], figures["ungraded"], figures["kappa"]) == (0, 2, None)


def test_a_refused_key_ends_as_one_sentence(server, tmp_path, capsys):
    server.always = refuse(401, message=f"Incorrect API key provided: {KEY}")
    assert grade.main(["--answers", str(write(tmp_path)), "--cache", str(tmp_path / "j"), *endpoint(server)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert "JUDGE_KEY" in printed.err and KEY not in printed.err + printed.out


def test_by_a_model_here(tmp_path, monkeypatch):
    monkeypatch.setattr(grade.runtime, "start", lambda devices: None)  # JAX has started
    model = tiny.model_folder(tmp_path / "model")
    options = ["--grader.kind", "model", "--grader.model", str(model), "--judge.batch", "4", "--devices", "1"]
    path = write(tmp_path)
    figures, graded = run(path, *options)
    assert figures["usage"]["calls"] == 6  # all but the empty answer
    assert graded[3]["verdict"] is False
    again, graded_again = run(path, *options)
    assert graded_again == graded and again["usage"]["cached"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grader.kind", "likelihood"], "no line has a field 'log_likelihood'"),
        (["--limit", "0"], "limit is 0; expected at least 1"),
        (["--grader.kind", "model"], "--grader.model"),
        (["--grader.modle", "x"], "--grader.model"),
        (["--part", "half"], "held-out"),
    ],
)
def test_mistakes_end_with_what_to_change(tmp_path, capsys, options, message):
    try:
        code = grade.main(["--answers", str(write(tmp_path)), *options])
    except SystemExit as exit_:
        code = exit_.code
    printed = capsys.readouterr()
    assert code == 2 and message in " ".join((printed.err + printed.out).replace("│", " ").split())


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert grade.main(["--answers", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
