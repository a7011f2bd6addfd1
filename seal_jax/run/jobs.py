"""Work that runs elsewhere: as processes of this machine or as jobs of a SLURM cluster, through `submitit`.

    found = jobs.run(where, {"prompt=rewrite": Task(run_part, ...), ...}, folder / "jobs", say=print)

A task is a function that keeps what it finishes in a run folder of its own, so it can be stopped, sent again to the
cluster, or run a second time, and loses nothing: a job that comes to the end of its time is queued again by `submitit`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from seal_jax.types import require_at_least

ROOT = Path(__file__).parents[2]  # the clone: jobs import `experiments` from it
POLL = 0.5  # seconds between two looks at the jobs
MOST_REQUEUED = 100  # times that a job is queued again because its time was up


@dataclasses.dataclass(frozen=True)
class Jobs:
    """Where runs that cannot share a program run, and what a job asks for."""

    where: Literal["here", "local", "slurm"] = "here"
    """here: one after another in this process; local: processes of this machine; slurm: jobs of a cluster."""
    at_once: int | None = None
    """Jobs at a time; by default one on this machine, all on a cluster."""
    split: int = 1
    """Jobs that the cells of one program are split into."""
    partition: str | None = None
    """Of the cluster; by default its own choice."""
    account: str | None = None
    """Of the cluster, where it asks for one."""
    gpus: int = 1
    """Of a job. Local jobs see the first so many."""
    cpus: int = 8
    """Cores of a job."""
    memory: int = 64
    """Of a job, GB."""
    hours: float = 24.0
    """Of a job; one that comes to their end carries on in another."""

    def __post_init__(self) -> None:
        require_at_least(1, split=self.split, cpus=self.cpus, memory=self.memory)
        require_at_least(0, gpus=self.gpus)
        require_at_least(0.1, hours=self.hours)
        if self.at_once is not None:
            require_at_least(1, at_once=self.at_once)


class Task:
    """A function and its arguments, as `submitit` takes them: queued again as they are when a job's time is up."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __call__(self) -> Any:
        return self.function(*self.arguments)

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def executor(jobs: Jobs, folder: Path) -> Any:
    """What sends tasks away; their logs come to lie in `folder`.

    Raises:
        ValueError: submitit is not installed, or this machine has no SLURM.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError(
            f"--jobs.where {jobs.where} sends work away through submitit, which is not installed: "
            "pip install 'seal_jax[slurm]', or leave --jobs.where out to run everything here"
        ) from None
    if jobs.where == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(
            "--jobs.where slurm: this machine has no sbatch, so it reaches no SLURM cluster; start the same command "
            "on a login node of the cluster, or use --jobs.where local or here"
        )
    own = {"slurm_max_num_timeout": MOST_REQUEUED} if jobs.where == "slurm" else {}
    made = submitit.AutoExecutor(folder, cluster=jobs.where, **own)
    made.update_parameters(
        name="seal",
        timeout_min=max(1, round(60 * jobs.hours)),
        gpus_per_node=jobs.gpus,
        cpus_per_task=jobs.cpus,
        mem_gb=jobs.memory,
        slurm_setup=[f"export PYTHONPATH={ROOT}:$PYTHONPATH"],
        slurm_additional_parameters={"account": jobs.account} if jobs.account else {},
        **({"slurm_partition": jobs.partition} if jobs.partition else {}),
    )
    return made


def run(
    jobs: Jobs,
    tasks: Mapping[str, Task],
    folder: Path,
    *,
    say: Callable[[str], None],
    done: Callable[[str, Any], None] = lambda name, result: None,
) -> dict[str, Any]:
    """Runs all tasks and returns what each did; `done` gets every result as soon as it is there.

    One that fails does not stop the others. An interrupt cancels what runs.

    Raises:
        ValueError: no `submitit`, or no SLURM here.
        OSError: some tasks failed (says which, why, and where their logs are).
    """
    sender, most = executor(jobs, folder), jobs.at_once or (1 if jobs.where == "local" else len(tasks))
    waiting, running = dict(tasks), {}  # type: dict[str, Task], dict[str, Any]
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                name = next(iter(waiting))
                try:
                    running[name] = sender.submit(waiting.pop(name))
                except RuntimeError as error:  # submitit's, when sbatch refuses
                    raise OSError(f"{jobs.where} took no job ({name}): {_last_line(error)}") from error
                say(f"job {running[name].job_id}: {name}")
            for name, job in list(running.items()):
                if job.done():
                    del running[name]
                    try:
                        results[name] = job.result()
                    except Exception as error:  # of any kind: it happened elsewhere
                        log = job.paths.stderr
                        failed[name] = f"{name} ({_last_line(error)}; its log: {log})"
                        say(f"job {job.job_id} failed: {failed[name]}")
                    else:
                        done(name, results[name])
            if running:
                time.sleep(POLL)
    except BaseException:
        for job in running.values():
            with contextlib.suppress(Exception):
                job.cancel(check=False)
        raise
    if failed:
        raise OSError(
            f"{len(failed)} of {len(tasks)} jobs failed: {'; '.join(failed.values())}. Whatever was finished is kept: "
            "mend the cause and run the same command again"
        )
    return results


def _last_line(error: BaseException) -> str:
    """What a job died of, without its traceback."""
    lines = [line.strip(" -|") for line in str(error).splitlines()]
    told = [line for line in lines if "Error: " in line or "Exception: " in line]
    return (told or [line for line in lines if line] or [type(error).__name__])[-1]
