"""Work that runs elsewhere: as processes of this machine or as an array job of a SLURM cluster, through `submitit`.

    for name, result in jobs.run(where, {"prompt=rewrite": Task(run_part, ...), ...}, folder / "jobs", say=print):
        ...

A task is a function that keeps what it finishes in a run folder, so it can be stopped, sent again or run twice, and
loses nothing: `submitit` queues a job again when its time is up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from seal_jax.run import hosts
from seal_jax.types import require_at_least

ROOT = Path(__file__).parents[2]  # jobs import `experiments` from the clone
POLL = 0.5  # seconds between two looks at the jobs, and of a local job at who sent it
ENDING = 5.0  # seconds that a local job has to end when it is told to
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
    """Of a job. Local jobs see the first ones."""
    cpus: int = 8
    """Cores of a job."""
    memory: int = 64
    """Of a job, GB."""
    hours: float = 24.0
    """Of a job; one that takes longer carries on in another."""

    def __post_init__(self) -> None:
        require_at_least(
            1, split=self.split, cpus=self.cpus, memory=self.memory, at_once=1 if self.at_once is None else self.at_once
        )
        require_at_least(0, gpus=self.gpus)
        require_at_least(0.1, hours=self.hours)


class Task:
    """A function and its arguments, as `submitit` takes them: queued again unchanged when a job's time is up."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments
        self.sender: int | None = None  # the process on this machine without which it is not to run

    def __call__(self) -> Any:
        if self.sender is not None:
            threading.Thread(target=_end_with, args=(self.sender,), daemon=True).start()
        return self.function(*self.arguments)

    def checkpoint(self) -> Any:
        """What `submitit` queues in place of a job that it stops."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def executor(jobs: Jobs, folder: Path) -> Any:
    """The `submitit` executor that tasks are sent to; their logs are written to `folder`.

    Raises:
        ValueError: submitit is not installed, this machine has no SLURM, or several processes share the run.
    """
    if hosts.joined():
        raise ValueError(
            f"--jobs.where {jobs.where} sends work away, and several processes share this run: start one of them alone "
            "(--distributed.join never), or use --jobs.where here"
        )
    try:
        import submitit
    except ImportError:
        raise ValueError(
            f"--jobs.where {jobs.where} sends work away through submitit, which is not installed: "
            "pip install 'seal_jax[slurm]', or leave --jobs.where out to run everything here"
        ) from None
    slurm: dict[str, Any] = {}
    if jobs.where == "slurm":
        if shutil.which("sbatch") is None:
            raise ValueError(
                "--jobs.where slurm: this machine has no sbatch, so it reaches no SLURM cluster; start the same "
                "command on a login node of the cluster, or use --jobs.where local or here"
            )
        slurm["slurm_max_num_timeout"] = MOST_REQUEUED
    made = submitit.AutoExecutor(folder, cluster=jobs.where, **slurm)
    chosen = {"slurm_partition": jobs.partition, "slurm_array_parallelism": jobs.at_once}
    made.update_parameters(
        name="seal",
        timeout_min=max(1, round(60 * jobs.hours)),
        gpus_per_node=jobs.gpus,
        cpus_per_task=jobs.cpus,
        mem_gb=jobs.memory,
        slurm_setup=[f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
        slurm_additional_parameters={"account": jobs.account} if jobs.account else {},
        **{name: value for name, value in chosen.items() if value},
    )
    return made


def run(
    jobs: Jobs, tasks: Mapping[str, Task], folder: Path, *, say: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """Runs all tasks and yields what each returned, as soon as it is there. On a cluster they are one array job.

    One that fails does not stop the others. An interrupt cancels the jobs that are running.

    Raises:
        ValueError: no `submitit`, or no SLURM here.
        OSError: some tasks failed (says which, why, and where their logs are).
    """
    sender, names, failed = executor(jobs, folder), list(tasks), []
    at_once = jobs.at_once or 1 if jobs.where == "local" else max(1, len(names))
    for start in range(0, len(names), at_once):
        wave, sent = names[start : start + at_once], []
        try:
            with sender.batch():
                for name in wave:
                    tasks[name].sender = os.getpid() if jobs.where == "local" else None
                    sent.append(sender.submit(tasks[name]))
        except RuntimeError as error:  # submitit's, when sbatch refuses
            raise OSError(f"{jobs.where} took no job ({', '.join(wave)}): {_last_line(error)}") from error
        import submitit

        try:
            name_of = {job.job_id: name for job, name in zip(sent, wave, strict=True)}
            say("\n".join(f"job {number}: {name}" for number, name in name_of.items()))
            for job in submitit.helpers.as_completed(sent, poll_frequency=POLL):
                name = name_of[job.job_id]
                try:
                    result = job.result()
                except Exception as error:  # of any kind: it happened elsewhere
                    failed.append(f"{name} ({_last_line(error)}; its log: {job.paths.stderr})")
                    say(f"job {job.job_id} failed: {failed[-1]}")
                else:
                    yield name, result
        finally:
            for job in sent:
                with contextlib.suppress(Exception):
                    if not job.done():
                        job.cancel(check=False)
                        if jobs.where == "local":  # it holds its run folder until it has ended
                            job._process.wait(ENDING)
    if failed:
        raise OSError(
            f"{len(failed)} of {len(tasks)} jobs failed: {'; '.join(failed)}. Whatever was finished is kept: "
            "remove the cause and run the same command again"
        )


def _end_with(process: int) -> None:
    """Ends this process once another one has ended, killed or not: a local job is nobody's orphan."""
    while True:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(POLL)


def _last_line(error: BaseException) -> str:
    """What a job ended with, without its traceback."""
    lines = [line.strip(" -|") for line in str(error).splitlines()]
    named = [line for line in lines if "Error: " in line or "Exception: " in line]
    return (named or [line for line in lines if line] or [type(error).__name__])[-1]
