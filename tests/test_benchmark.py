"""The benchmark's arithmetic, its workloads, its command line; and that it runs with little installed. No time is
asserted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmark import bench, ours, profile, stages, table, whole_round, workloads
from experiments.benchmark import command as benchmark
from experiments.benchmark.bench import Settings
from experiments.benchmark.peer_process import DidNotFitError, Peer
from seal_jax.engine import batching, costs, training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.costs import Peak
from seal_jax.engine.training import FineTuning, Shapes, Trainer, make_trainer
from seal_jax.io import architectures
from seal_jax.types import Compute

ROOT = Path(__file__).parents[1]
RATIOS = {"train_qv", "train_all", "decode", "edit", "seal"}
SMALL = ["--random", "tiny", "--adapters", "2", "--epochs", "1", "--repeats", "1", "--edits", "4"]
# What no part of the package needs: extras, and what only other experiments use.
ABSENT = ("jaxtyping", "matplotlib", "datasets", "tensorboardX", "torch", "peft")
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from experiments.benchmark import command as benchmark
sys.exit(benchmark.main({arguments!r}))
"""


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return {**kept, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "SEAL_JAX_CACHE": str(folder)}


def run(folder: Path, *arguments: str, absent: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The benchmark in a process of its own, on two CPU devices of a machine where `absent` is not installed."""
    code = BLOCKER.format(absent=set(absent), arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(folder), capture_output=True, text=True, timeout=280
    )


# ---------------------------------------------------------------------------------------------------------------------
# Workloads


def test_draws_follow_from_the_seed():
    assert workloads.seal(20, seed=3) == workloads.seal(20, seed=3)
    assert workloads.seal(20, seed=3) != workloads.seal(20, seed=4)
    first, again = (workloads.draw_tokens([[5, 2], [3]], 100, seed=1) for _ in range(2))
    assert first == again
    assert [[len(s.ids) for s in edit] for edit in first] == [[5, 2], [3]]
    assert workloads.seal(20, seed=3)[:5] == workloads.seal(5, seed=3)  # more self-edits leave the first as they were


def test_draws_have_the_distributions_of_recorded_runs():
    edits = workloads.seal(4000, seed=0)
    lines = np.log([len(edit) - 1 for edit in edits])
    words = np.log([n / workloads.TOKENS_A_WORD for edit in edits for n in edit[:-1]])
    passages = np.log([edit[-1] / workloads.TOKENS_A_WORD for edit in edits])
    for found, expected in (
        (lines, workloads.LINES),
        (words, workloads.WORDS_A_LINE),
        (passages, workloads.WORDS_A_PASSAGE),
    ):
        assert found.mean() == pytest.approx(expected.mu, abs=0.03)
        assert found.std() == pytest.approx(expected.sigma, rel=0.07)
    assert max(map(len, edits)) <= workloads.MAX_SEQUENCES
    assert max(map(max, edits)) <= workloads.MAX_TOKENS
    assert np.mean([len(edit) for edit in edits]) == pytest.approx(7.7, abs=0.2)  # as recorded
    assert np.mean([sum(edit) for edit in edits]) == pytest.approx(360, abs=15)  # as recorded


def test_a_number_task_becomes_a_self_edit_of_drawn_lines():
    domain = whole_round.make_domain(seed=0)
    task = whole_round.make_tasks(2, 50, seed=0)[1]
    completion = " ".join(map(str, range(150)))
    edit = domain.parse(task, completion)
    assert " ".join(example.completion for example in edit.examples[:-1]) == completion
    assert edit.examples[-1].completion == task.passage
    assert edit == domain.parse(task, completion)
    assert domain.parse(task, "").problem
    assert len(domain.queries(task)) == workloads.QUESTIONS
    gold = [query.gold for query in task.queries]
    assert domain.grade([task.queries], [[gold[0], "no", *gold[2:]]]) == [[True, False, True, True, True]]


def test_the_ids_that_end_a_completion_are_one_in_two_hundred():
    stop = whole_round.stop_ids(49_152, seed=0)
    assert len(set(stop)) == pytest.approx(49_152 / 200, abs=1)
    codec = bench.number_codec(stop)
    assert codec.encode(codec.decode([5, 7])) == [5, 7]
    assert codec.encode_more(codec.end) == [stop[0]]


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic


def tokens(*lengths: int) -> list[Tokens]:
    return [Tokens([1] * n, 0) for n in lengths]


def two_at_a_time(epochs: int) -> Trainer:
    return make_trainer(FineTuning(epochs=epochs), Shapes((4, 8), 2, 0, 0, 0), Compute(chunk=2))


def test_processed_tokens_on_a_case_counted_by_hand():
    """Widths 4 and 8, two rows a tick, and the model is so small that only the wider pays for its program."""
    edits = [tokens(8, 2), tokens(3, 2)]
    assert ours.processed_tokens(3, edits, two_at_a_time(1), seed=0, devices=1) == 2 * (8 + 8)
    assert ours.processed_tokens(3, edits, two_at_a_time(2), seed=0, devices=1) == 2 * 2 * (8 + 8)


def test_each_width_has_its_steps_where_programs_pay(monkeypatch):
    """Two rows a tick, and the shuffles meet: (8, 3) at 8 tokens, (2, 2) at 4."""
    monkeypatch.setattr(training, "COMPILING", (0.0, 0.0))
    edits = [tokens(8, 2), tokens(3, 2)]
    assert ours.processed_tokens(3, edits, two_at_a_time(1), seed=0, devices=1) == 2 * (8 + 4)


ROWS = [
    stages.Row("train_qv", "seal_jax", 2.0, [2.0], 100, 125, 40, 10, 0.5, 1.0, 2**30),
    stages.Row("train_qv", "peft", 3.0, [3.0], 100, 100, 40, 20),
    stages.Row("train_qv", "peft-x2", 2.5, [2.5], 100, 100, 40, 20),
    stages.Row("train_qv", "other", 90.0, [90.0], 100, 4000, 40, 20),
    stages.Row("decode", "seal_jax", 1.0, [1.0], 10, 10, 4, 10, 0.5, 1.0, 2**30),
    stages.Row("decode", "peft", 4.0, [4.0], 10, 10, 4, 20),
]


def test_a_ratio_is_their_time_over_ours():
    assert stages.ratios(ROWS)["peft"] == {"train_qv": 1.5, "decode": 4.0}
    assert stages.ratios(ROWS)["other"] == {"train_qv": 45.0}
    expected = {"train_qv": 1.5, "decode": 4.0, "train_all": None, "edit": None, "seal": None}
    assert stages.peer_ratio(ROWS) == expected
    assert stages.peer_ratio([ROWS[0], ROWS[2]])["train_qv"] == 1.25  # two processes, where one did not run
    assert stages.peer_ratio(ROWS[:1]) == dict.fromkeys(RATIOS)


def test_a_whole_self_edit_is_training_and_answering():
    rows = {row.who: row for row in stages.edit_rows(ROWS[:4], ROWS[4:])}
    assert set(rows) == {"seal_jax", "peft"}  # the others did not answer
    assert rows["seal_jax"].seconds == 3.0
    assert rows["seal_jax"].floor_seconds == 1.0
    assert rows["peft"].seconds == 7.0
    assert stages.peer_ratio([*rows.values()])["edit"] == pytest.approx(7 / 3)


def test_the_figures_of_a_row():
    figures = ROWS[0].figures(Peak(flops=100, bandwidth=50))
    assert figures["tokens_per_second"] == 50
    assert figures["processed_tokens_per_second"] == 62.5
    assert figures["padding"] == pytest.approx(1.25)
    assert figures["mfu"] == pytest.approx(0.2)  # 20 of 100 operations a second
    assert figures["mfu_processed"] == pytest.approx(0.25)
    assert figures["bytes_per_second"] == 5
    assert figures["times_floor"] == 4


def test_repeats_add_up_their_turns():
    """Two turns a repeat: 3 s for 4 self-edits' worth of work, then 6 s."""
    runs = [(1, 1), (2, 3), (2, 1), (4, 3)]
    assert stages.per_unit(runs, 2) == [0.75, 1.5]


def test_every_line_of_the_table_fits_100_columns():
    peak = Peak(flops=100, bandwidth=50)
    lines = [table.row_line(row.figures(peak)) for row in ROWS]
    huge = stages.Row("edit", "other", 123456.0, [1.0], 1e9, 2e9, 1e15, 1e15, 12345.0, 1234.5, 140 * 2**30)
    lines.append(table.row_line(huge.figures(Peak(1e15, 5e12))))
    assert max(map(len, [*table.HEAD, *lines])) <= 100


# ---------------------------------------------------------------------------------------------------------------------
# A peer that trains many at a time, under another Python


class Asked:
    """A peer that notes what it is asked for, and takes a second."""

    name = "skyrl-tx"

    def do(self, method: str, each: list) -> float:
        self.method, (self.work,) = method, each
        return 1.0


def test_long_sequences_of_self_edits_trained_together_meet():
    edits = [tokens(3, 9, 5), tokens(2, 3), tokens(8, 2, 6), tokens(7, 4)]
    asked, settings = Asked(), benchmark.parse(["inner", "--epochs", "2"])
    few = bench.Bench(settings, *[None] * 5, {})
    turn = stages._training_together(few, asked, settings.fine_tuning("seal"), edits, [1.7, 0.5, 1.6, 1.1], 2)
    for number in range(2):
        taken, done = turn(number)
        sequences, steps, projections, rank, *_, compile_only = asked.work
        assert (asked.method, taken, compile_only) == ("train_many", 1.0, False)
        assert (projections, rank) == (("q_proj", "v_proj"), 32)
        assert done == pytest.approx(1.6 if len(steps) == 4 else 3.3)  # the two with two sequences, or those with three
        for e, own in enumerate(sequences):
            assert sorted(step[e] for step in steps) == sorted([*range(len(own))] * 2)
        widths = [[len(own[i]) for own, i in zip(sequences, step, strict=True)] for step in steps]
        assert sorted(map(max, widths)) == ([4, 4, 7, 7] if len(steps) == 4 else [3, 3, 6, 6, 9, 9])
    turn(stages.WARM)
    assert asked.work[-1] is True


def test_a_shorter_self_edit_waits_at_the_end_of_its_ranks():
    edits = [tokens(9, 5, 3), tokens(4)]
    asked, settings = Asked(), benchmark.parse(["inner", "--epochs", "1"])
    few = bench.Bench(settings, *[None] * 5, {})
    stages._training_together(few, asked, settings.fine_tuning("seal"), edits, [1.6, 0.4], 2)(0)
    assert {tuple(step) for step in asked.work[1]} == {(0, 0), (None, 1), (None, 2)}


def test_a_peer_that_does_not_fit_is_left_out_and_said(capsys):
    def short(turn: int) -> tuple[float, float]:
        raise DidNotFitError("--peer skyrl-tx ran out of memory: Out of memory allocating 5 bytes")

    tiny = bench.Bench(Settings("inner", repeats=1), None, None, 4, jax.devices("cpu"), Peak(1e9, 1e9), {})
    programs = {stages.OURS: lambda turn: (1.0, 2.0), "skyrl-tx": short}
    cost = [costs.Cost(1.0, 1.0)]
    rows = stages.measure(tiny, "seal", programs, lambda sharing: cost, together=16, tokens=5, processed={})
    assert [row.who for row in rows] == [stages.OURS]
    assert "16 adapters: --peer skyrl-tx ran out of memory" in capsys.readouterr().out


STUB = """#!/bin/sh
while read line; do
  case $line in
    *start*) echo '{"versions": {}, "seconds": 0, "peak": 7}';;
    *full*) echo '{"error": "Out of memory", "short_of_memory": true}'; exit 1;;
    *wrong*) echo '{"error": "KeyError: 1", "short_of_memory": false}'; exit 1;;
    *kill*) kill -9 $$;;
  esac
done
"""


def test_a_process_under_another_python_is_asked_and_begins_anew(tmp_path):
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    peer = Peer("skyrl-tx", tmp_path, device="cpu", dtype="float32", python=tmp_path / "python")
    with closing(peer):
        for method, error in (("full", DidNotFitError), ("kill", DidNotFitError), ("wrong", ValueError)):
            with pytest.raises(error, match="--peer skyrl-tx") as raised:
                peer.do(method, [()])
            assert type(raised.value) is error
            assert peer.do("start", [()]) == 0
            assert peer.peak_bytes == 7


# ---------------------------------------------------------------------------------------------------------------------
# The command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--adaptors", "4"],
        ["innner"],
        ["inner", "--peer", "pefd"],
        ["inner", "--random", "smollm2-135"],
        ["inner", "--adapters", "0"],
    ],
)
def test_typos_are_rejected(arguments):
    with pytest.raises(SystemExit):
        benchmark.parse(arguments)


def test_without_a_subcommand_it_is_everything_that_is_compared():
    config = benchmark.parse(["--peer", "peft", "peft-x2", "--adapters", "3"])
    assert config.command == "peers"
    assert config.peer == ("peft", "peft-x2")
    assert config.adapters == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inner", "--plot", "a.png"], "--plot belongs to scaling"),
        (["decode", "--loss", "distillation"], "--loss belongs to inner"),
        (["decode", "--edits", "2"], "--edits belongs to peers and inner"),
        (["inner", "--json", "no/such/folder/a.json"], "folder does not exist"),
        (["decode", "--peer", "skyrl-tx"], "--peer skyrl-tx only trains"),
        (["inner", "--peer", "skyrl-tx"], "--peer-python is not given"),
        (["inner", "--peer", "skyrl-tx", "--peer-python", sys.executable], "pip install --no-deps skyrl-tx==0.3.0"),
    ],
)
def test_mistakes_end_as_one_sentence(arguments, said, capsys):
    assert benchmark.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_dry_run_prints_the_limit(capsys):
    assert benchmark.main(["--dry-run", "--random", "qwen2.5-7b", "--adapters", "8"]) == 0
    out = capsys.readouterr().out
    model = architectures.named("qwen2.5-7b")
    lora = costs.lora_parameters(model, ("q_proj", "v_proj"), 32)
    products, _ = costs.training(model, lora, [48] * 8, epochs=10, sharing=8, itemsize=2)
    line = next(line for line in out.splitlines() if line.startswith("train q,v "))
    assert line.split()[2:5] == ["3,840", f"{products.flops / 1e12:.3g}", f"{products.bytes / 1e9:.3g}"]


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


def check_schema(file: Path, stages_run: set[str]) -> dict:
    result = json.loads(file.read_text())
    assert set(result["peer_ratio"]) == RATIOS
    assert {row["stage"] for row in result["rows"]} == stages_run
    for row in result["rows"]:
        assert row["seconds"] > 0
        assert row["processed_tokens"] >= row["tokens"] > 0
        assert row["padding"] >= 1
        if row["who"] == "seal_jax":
            assert row["floor_seconds"] > 0
            assert row["compile_seconds"] >= 0
            assert row["peak_bytes"] > 0
    assert {"jax", "numpy"} <= set(result["versions"])
    assert result["machine"]["jax"] == result["versions"]["jax"]
    assert result["peak"]["flops"] > 0
    return result


@pytest.mark.slow
def test_everything_compared_runs_with_little_installed(tmp_path):
    file = tmp_path / "out.json"
    done = run(tmp_path, *SMALL, "--json", str(file), absent=ABSENT)
    assert done.returncode == 0, done.stderr
    result = check_schema(file, {"train_qv", "train_all", "decode", "edit", "seal"})
    assert set(result["peer_ratio"].values()) == {None}  # nobody to compare with
    uniform = next(row for row in result["rows"] if row["stage"] == "train_qv")
    width = batching.bucket_widths(48, Compute.width_cuts)[-1]
    assert uniform["padding"] == pytest.approx(width / 48) or 48 in Compute.width_cuts


@pytest.mark.slow
def test_a_teacher_is_timed_beside_the_next_token(tmp_path):
    file = tmp_path / "out.json"
    done = run(tmp_path, "inner", *SMALL, "--loss", "distillation", "--workload", "uniform", "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = check_schema(file, {"train_qv", "train_all"})
    assert result["ratios"].keys() == {"distilled"} and result["ratios"]["distilled"].keys() == {
        "train_qv",
        "train_all",
    }
    assert {row["who"] for row in result["rows"]} == {"seal_jax", "distilled"}


def test_a_teacher_reads_a_passage_and_then_the_sequence():
    edits = [tokens(3, 9), tokens(2)]
    for own, seen in zip(edits, workloads.in_view(edits, 50, seed=1), strict=True):
        assert [s.ids for s in seen] == [s.ids for s in own]
        assert all(len(s.view) == 151 + len(s.ids) and s.view[151:] == s.ids for s in seen)


def test_a_peer_that_is_not_installed_is_an_error_that_says_how_to_do_without(tmp_path):
    done = run(tmp_path, *SMALL, "--peer", "peft", absent=ABSENT)
    assert done.returncode == 2
    assert "--peer peft needs torch" in done.stderr


@pytest.mark.slow
def test_the_other_subcommands_run(tmp_path):
    small = SMALL[:-2]
    over = ["--over-adapters", "1", "2", "--over-tokens", "16", "--over-models", "tiny", "--steps", "1"]
    for arguments in (
        ["round", *small, "--passages", "2", "--samples", "2"],
        ["scaling", *small, *over],
        ["sample", *small],
    ):
        file = tmp_path / f"{arguments[0]}.json"
        done = run(tmp_path, *arguments, "--json", str(file))
        assert done.returncode == 0, done.stderr
        assert set(json.loads(file.read_text())["peer_ratio"]) == RATIOS
    phases = [phase["name"] for phase in json.loads((tmp_path / "round.json").read_text())["phases"]]
    assert phases == ["base model", "writing self-edits", "inner loop", "learning to write"]
    points = json.loads((tmp_path / "scaling.json").read_text())["points"]
    assert [(point["over"], point["label"]) for point in points] == [
        ("adapters", "E = 1"),
        ("adapters", "E = 2"),
        ("tokens", "T = 16"),
        ("models", "tiny"),
    ]


@pytest.mark.peers
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs torch and peft")
def test_peers_do_the_same_work(tmp_path):
    file = tmp_path / "out.json"
    done = run(tmp_path, *SMALL, "--peer", "peft", "peft-x2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = check_schema(file, {"train_qv", "train_all", "decode", "edit", "seal"})
    assert all(ratio > 0 for ratio in result["peer_ratio"].values())
    assert {"torch", "peft", "transformers"} <= set(result["versions"])
    for stage in ("train_qv", "decode"):
        assert len({row["tokens"] for row in result["rows"] if row["stage"] == stage}) == 1


@pytest.mark.peers
@pytest.mark.skipif("SKYRL_TX_PYTHON" not in os.environ, reason="needs the Python of an environment with skyrl-tx")
def test_skyrl_tx_does_the_same_work(tmp_path):
    file = tmp_path / "out.json"
    options = ["--peer", "skyrl-tx", "--peer-python", os.environ["SKYRL_TX_PYTHON"], "--json", str(file)]
    done = run(tmp_path, "inner", *SMALL, *options)
    assert done.returncode == 0, done.stderr
    assert "8 losses from the same adapter are ours" in done.stdout
    result = check_schema(file, {"train_qv", "train_all", "seal"})
    assert result["versions"]["skyrl-tx"] == "0.3.0"
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in result["rows"])


def test_operations_are_sorted_into_kinds():
    kinds = {profile.kind_of(name) for name in ("ynn_fusion", "dot", "cublas-gemm")}
    assert kinds == {"products of matrices"}
    assert profile.kind_of("bitcast_dynamic-update-slice_fusion") == "activations put away, stacks filled"
    assert profile.kind_of("dynamic-slice_bitcast_fusion") == "layers sliced out of the stack"
    assert profile.kind_of("copy_bitcast_fusion") == "copies and transposes"
    assert profile.kind_of("add_rsqrt_fusion") == profile.KINDS[-1][0]
