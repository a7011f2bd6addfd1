"""Experiments as small as they go, each run started as a process that can be killed: for kill_storm.py, torn_files.py.

A run is forked from this process, which has imported everything and started no device: a try takes seconds less.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

for name, value in {  # read by JAX when it is imported: as conftest.py has them
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_cpu_use_fusion_emitters=false",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ[name] = value
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

from seal_jax.domains.passages import INVENTED  # noqa: E402
from tests import tiny  # noqa: E402

ONE = "--tracker.kind none --compute.devices 1"
SMALL = f"--sampling.max-tokens 12 --answer-tokens 4 --prompt implications {ONE}"
COMMANDS = {
    "squad": f"squad smoke {SMALL} --outer.signal log_likelihood --evaluation.passages 2 --inner.learning-rate 0.01",
    "arc": f"arc smoke --sampling.max-tokens 256 --max-cells 200 {ONE}",
    "adapt": f"adapt smoke --document notes.md {SMALL} --ask Who?",
    "cpt": f"cpt smoke --n 2 {SMALL}",
    "cpt full": f"cpt smoke --n 2 --method full --full.epochs 3 {SMALL} --compute.devices 2",
    "continual": f"continual smoke {SMALL}",
    "rewards": f"rewards smoke {SMALL}",
    "credit": f"credit smoke {SMALL}",
    "evaluate_edits": f"evaluate_edits smoke --answer-tokens 4 --edits edits.json {ONE}",
    "ablations": f"ablations smoke {SMALL}",
}
TIMED = "second|s a|cost, inner|memory peak"  # in the names of a table's columns
VARIES = ("timings", "judge", "machine", "command")  # of results.json: what a run is not


class Ended(NamedTuple):
    """A run that has ended."""

    status: int  # as a shell has it: negative where a signal ended it
    out: str
    err: str
    seconds: float


class Storm:
    """A folder with a tiny model and what the commands read, and runs in it."""

    def __init__(self, folder: Path):
        self.folder, self.model = folder, folder / "model"
        if not (process := os.fork()):  # JAX is used in forked processes alone
            tiny.model_folder(self.model, context_length=4096)
            os._exit(0)
        os.waitpid(process, 0)
        passages = json.loads(INVENTED.read_text(encoding="utf-8"))
        (folder / "notes.md").write_text(f"# Isle\n\n{passages[0]['context']}\n", encoding="utf-8")
        edits = [{**passage, "completions": ["A line.\nAnother line."]} for passage in passages]
        (folder / "edits.json").write_text(json.dumps(edits), encoding="utf-8")
        for command in COMMANDS.values():
            importlib.import_module(f"experiments.{command.split()[0]}")

    def start(self, name: str, run: Path, *options: str, cache: str = "warm") -> int:
        """Begins a run, and returns its process; `cache` names the folder of compiled programs."""
        experiment, *words = shlex.split(COMMANDS[name])
        if pid := os.fork():
            return pid
        try:
            os.chdir(self.folder)
            for stream, file in ((0, os.devnull), (1, run.with_suffix(".out")), (2, run.with_suffix(".err"))):
                os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if stream else 0)), stream)
            os.environ["SEAL_JAX_CACHE"] = str(self.folder / "caches" / cache)
            importlib.import_module("seal_jax.run.ends").until_heard()  # it is a program now
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115
            module = importlib.import_module(f"experiments.{experiment}")
            command = importlib.import_module("seal_jax.run.command")
            words += ["--model", str(self.model), "--run-folder", str(run), *options]
            status = command.main(module.EXPERIMENT, words)
            sys.stdout.flush()
            os._exit(status)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)

    def wait(self, pid: int, run: Path, *, started: float, limit: float = 240.0) -> Ended:
        """Waits until a run has ended; one that does not is killed."""
        status = None
        while status is None:
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() - started > limit:
                os.kill(pid, 9)
                limit = float("inf")
            else:
                time.sleep(0.01)
        out, err = (run.with_suffix(end).read_text(encoding="utf-8", errors="replace") for end in (".out", ".err"))
        return Ended(status, out, err, time.monotonic() - started)

    def run(self, name: str, run: Path, *options: str, cache: str = "warm") -> Ended:
        """A run from its start to its end."""
        started = time.monotonic()
        return self.wait(self.start(name, run, *options, cache=cache), run, started=started)

    def reference(self, name: str, *options: str) -> Path:
        """The folder of a run that nothing disturbed, made once."""
        run = self.folder / "-".join([name.replace(" ", "-"), "reference", *options]).replace("--", "")
        if not run.exists():
            ended = self.run(name, run, *options)
            if ended.status:
                raise RuntimeError(f"{name}: {ended.err}{ended.out}")
        return run


def found(run: Path) -> tuple[Any, str | None]:
    """What a run came to: results.json and self_edits.jsonl but for what differs from run to run."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    for field in VARIES:
        results.pop(field, None)
    for table in results.get("tables", ()):
        timed = [i for i, column in enumerate(table["columns"]) if re.search(TIMED, str(column))]
        table["note"] = re.sub(r"\(\d+\.\d+ s a self-edit\)", "", table.get("note", ""))
        table["rows"] = [[cell for i, cell in enumerate(row) if i not in timed] for row in table["rows"]]
    edits = run / "self_edits.jsonl"
    return results, edits.read_text(encoding="utf-8") if edits.exists() else None


def is_sentence(ended: Ended) -> bool:
    """Whether a run ended with one sentence for a user, and no traceback."""
    return ended.status == 2 and ended.err.startswith("error: ") and "Traceback" not in ended.err


def options(arguments: Sequence[str], about: str | None, **count: int) -> argparse.Namespace:
    """What a program of ours is told: how many of what `count` names, the seed, the experiments, `until` when."""
    ((what, default),) = count.items()
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument(f"--{what}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help=f"stop then, with fewer {what}")
    parser.add_argument("--experiments", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    asked = parser.parse_args(arguments)
    asked.until = time.monotonic() + 60 * asked.minutes
    return asked


def clear(run: Path) -> None:
    """Removes a run's folder and what it said."""
    shutil.rmtree(run, ignore_errors=True)
    for end in (".out", ".err"):
        run.with_suffix(end).unlink(missing_ok=True)
