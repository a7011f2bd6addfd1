"""Work sent away comes back, one failure does not stop the others, and a cluster that is not there is said to be so."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import ablations
from experiments.ablations import SMOKE, Config
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.run import jobs
from seal_jax.run.jobs import Jobs, Task
from seal_jax.run.session import Place
from seal_jax.types import Compute
from tests import tiny

LOCAL = Jobs("local", gpus=0, cpus=1, memory=4)


@pytest.fixture
def job_environment(monkeypatch, tmp_path):
    """Jobs are processes of their own that import from the clone."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(jobs.ROOT)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the functions of this file
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("SEAL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def note(path: Path, other: Path) -> float:
    """Says when it began, and whether the other had begun."""
    path.write_text("begun")
    time.sleep(0.2)
    return os.getpid() if not other.exists() else -os.getpid()


def fail() -> None:
    raise ValueError("a rank of nothing")


@pytest.mark.slow
def test_results_come_back_from_other_processes_one_at_a_time(job_environment, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    said = []
    results = dict(jobs.run(LOCAL, {"a": Task(note, a, b), "b": Task(note, b, a)}, tmp_path / "jobs", say=said.append))
    assert results["a"] > 0 > results["b"]  # a ended before b began
    assert os.getpid() not in map(abs, results.values())
    assert len(said) == 2


@pytest.mark.slow
def test_a_job_that_fails_is_told_and_does_not_stop_the_others(job_environment, tmp_path):
    done = {}
    with pytest.raises(OSError, match=r"1 of 2 jobs failed: bad \(ValueError: a rank of nothing; its log: .*\.err\)"):
        for name, result in jobs.run(
            LOCAL, {"bad": Task(fail), "good": Task(os.getpid)}, tmp_path / "jobs", say=lambda _: None
        ):
            done |= {name: result}
    assert done.keys() == {"good"}


def test_a_task_that_is_stopped_is_sent_again_as_it_is(job_environment):
    sent = Task(os.path.join, "a", "b").checkpoint()
    assert sent.function() == "a/b"


def test_a_cluster_that_is_not_there_is_said_to_be_so(job_environment, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"this machine has no sbatch.*--jobs.where local or here"):
        jobs.executor(Jobs("slurm"), tmp_path)


def test_a_job_that_is_not_taken_is_an_error_of_one_line(tmp_path, monkeypatch):
    class Refusing:
        batch = contextlib.nullcontext

        def submit(self, task):
            raise RuntimeError("sbatch: error: invalid partition specified: gpuu\n")

    monkeypatch.setattr(jobs, "executor", lambda where, folder: Refusing())
    with pytest.raises(OSError, match=r"^slurm took no job \(a\): .*invalid partition specified: gpuu"):
        list(jobs.run(Jobs("slurm"), {"a": Task(fail)}, tmp_path, say=print))


def test_a_clone_whose_path_has_a_blank_is_found_by_a_cluster(tmp_path, monkeypatch):
    """The script that is sent, as bash reads it; stand-ins for SLURM's commands keep it."""
    pytest.importorskip("submitit")
    for name in ("sbatch", "squeue", "sacct", "scancel", "srun"):
        (tmp_path / name).write_text('#!/bin/bash\n[ -f "$1" ] && cp "$1" "$SEEN"; echo Submitted batch job 1\n')
        (tmp_path / name).chmod(0o755)
    clone = tmp_path / "a b" / "it's $HOME"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.sh"))
    monkeypatch.setattr(jobs, "ROOT", clone)
    jobs.executor(Jobs("slurm"), tmp_path / "jobs").submit(Task(print, 1))
    (line,) = (line for line in (tmp_path / "seen.sh").read_text().splitlines() if line.startswith("export PYTHONPATH"))
    for before, after in (("", ""), ("/c d", ":/c d")):
        environment = {"PYTHONPATH": before, "PATH": os.environ["PATH"]}
        script = f'{line}; printf %s "$PYTHONPATH"'
        said = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert (said.stdout, said.stderr) == (f"{clone}{after}", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_local_jobs_end_with_the_program_that_sent_them(job_environment, tmp_path, number):
    """At once where it is asked to end, soon where it is killed: none is left that holds a run folder."""
    script = (
        "import sys; from pathlib import Path; from seal_jax.run import ends, jobs; from tests import test_jobs\n"
        "task = jobs.Task(test_jobs.wait_for_ever, Path(sys.argv[1]))\n"
        "work = lambda: list(jobs.run(test_jobs.LOCAL, {'a': task}, Path(sys.argv[2]), say=print))\n"
        "sys.exit(ends.ended(work))\n"
    )
    mark = tmp_path / "mark"
    words = [sys.executable, "-c", script, str(mark), str(tmp_path / "jobs")]
    program = subprocess.Popen(words, cwd=jobs.ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until = time.monotonic() + 60
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.05)
    job = int(mark.read_text())
    program.send_signal(number)
    program.wait(60)
    _, said = program.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert program.returncode == 128 + number
        assert "stopped; the same command carries on" in said
    while is_running(job) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(job)


def wait_for_ever(mark: Path) -> None:
    mark.with_suffix(".part").write_text(str(os.getpid()))
    mark.with_suffix(".part").rename(mark)
    time.sleep(600)


def is_running(process: int) -> bool:
    """Whether it is there, and not only waits to be asked how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_submitit_that_is_not_installed_is_said_to_be_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"submitit, which is not installed: pip install 'seal_jax\[slurm\]'"):
        jobs.executor(LOCAL, tmp_path)


@pytest.mark.parametrize("wrong", [{"split": 0}, {"at_once": 0}, {"hours": 0}, {"gpus": -1}])
def test_what_no_job_can_be_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is {next(iter(wrong.values()))}; expected at least"):
        Jobs(**wrong)


def run(config: Config, folder: Path) -> dict:
    compute = Compute(chunk=2, write_chunk=20, width_cuts=(), devices=1)
    return ablations.execute(ablations.EXPERIMENT, config, compute, Place(folder), command="the command")


@pytest.fixture
def config(tmp_path) -> Config:
    return dataclasses.replace(
        SMOKE,
        model=str(tiny.model_folder(tmp_path / "model")),
        prompt="implications",
        sampling=Sampling(max_tokens=12),
        answer_tokens=4,
        inner=FineTuning(rank=2, alpha=8.0, learning_rate=2e-2, epochs=1),
        metric="log_likelihood",
        ablation=None,
        grid=("inner.learning_rate=1e-2,3e-2",),
    )


@pytest.mark.slow
def test_an_ablation_in_jobs_is_the_ablation(job_environment, config, tmp_path):
    """Its cells are shared out, but they meet the same self-edits, written once."""
    here = run(config, tmp_path / "here")
    away = dataclasses.replace(config, jobs=dataclasses.replace(LOCAL, split=2))
    found = run(away, tmp_path / "away")
    assert found["recommendation"].split(":")[0] == here["recommendation"].split(":")[0]
    for mine, other in zip(found["cells"], here["cells"], strict=True):
        for passage, value in other["per_passage"]["log_likelihood"].items():
            assert mine["per_passage"]["log_likelihood"][passage] == pytest.approx(value, abs=1e-5)
    folders = sorted((tmp_path / "away" / "parts").iterdir())
    assert len(folders) == 3  # the part, which wrote the self-edits, and two shares of it
    written = []
    for folder in folders:
        journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        written.append([entry["value"] for entry in journal if "write" in entry["name"]])
    assert written[0] == written[1] == written[2] != []
    assert len((tmp_path / "away" / "self_edits.jsonl").read_text().splitlines()) == 2
    again = run(away, tmp_path / "away")  # nothing is left to send
    assert again["cells"] == found["cells"]


def test_a_search_that_cannot_be_sent_away_trains_nothing(config, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no sbatch"):
        run(dataclasses.replace(config, jobs=Jobs("slurm")), tmp_path / "run")
    assert not (tmp_path / "run" / "parts").exists()
