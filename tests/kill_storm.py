"""Kills runs of every experiment at random moments until they are done: they must end as undisturbed ones do.

    python -m tests.kill_storm --kills 200
    python -m tests.kill_storm --kills 20 --seed 3 --experiments squad "cpt full"

Most kills are SIGKILL; SIGTERM and Ctrl-C have to end with a sentence. A quarter of the runs begin with no compiled
program. Prints a line a run and the first difference; the exit status is 1 if there was one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.storm import Storm, clear, found, options


def life(storm: Storm, name: str, draw: random.Random, number: int, kills: Counter[str]) -> str | None:
    """One run, killed up to ten times; what was wrong with it."""
    reference = storm.reference(name)
    run, cold = storm.folder / f"life-{number}", draw.random() < 0.25
    cache = f"cold-{number}" if cold else "warm"
    usual = float((reference / "seconds").read_text()) * (3 if cold else 1)
    for _ in range(draw.randint(2, 10)):
        sent = draw.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), (6, 2, 2))[0]
        started = time.monotonic()
        process = storm.start(name, run, cache=cache)
        time.sleep(draw.uniform(0, usual))
        if done := os.waitpid(process, os.WNOHANG)[0]:
            break
        os.kill(process, sent)
        ended = storm.wait(process, run, started=started)
        kills[f"{sent.name}{', cold' if cold else ''}"] += not done
        if sent != signal.SIGKILL and ended.status not in (0, 128 + sent, -sent):
            return f"{sent.name}: status {ended.status}\n{ended.err}"
        if "Traceback" in ended.err:
            return ended.err
    ended = storm.run(name, run, cache=cache)
    if ended.status:
        return f"status {ended.status}\n{ended.err}"
    wrong = None if found(run) == found(reference) else f"other results: {run}"
    if wrong is None:
        clear(run)
    return wrong


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 if a run ended otherwise than the undisturbed one."""
    asked = options(arguments, __doc__, kills=200)
    draw, kills, wrong, lives = random.Random(asked.seed), Counter[str](), list[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kill-storm-", ignore_cleanup_errors=True) as scratch:
        storm = Storm(Path(scratch))
        for name in asked.experiments:
            storm.reference(name)
            again = storm.folder / "again"
            (storm.reference(name) / "seconds").write_text(str(storm.run(name, again).seconds))
            if found(again) != found(storm.reference(name)):
                wrong.append(f"{name}: two undisturbed runs differ")
            clear(again)
        while kills.total() < asked.kills and time.monotonic() < asked.until and len(wrong) < 5:
            name = asked.experiments[lives.total() % len(asked.experiments)]
            before, trouble = kills.total(), life(storm, name, draw, lives.total(), kills)
            lives[name] += 1
            print(f"{name:<16}{kills.total() - before} kills, {trouble or 'equal'}", flush=True)
            wrong += [f"{name}: {trouble}"] if trouble else []
    print(f"{kills.total()} kills ({dict(kills)}) of {lives.total()} runs ({dict(lives)}): {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
