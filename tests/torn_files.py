"""Damages a file of a finished or half-finished run and runs it again: the right results or a sentence, nothing else.

    python -m tests.torn_files --folders 500
    python -m tests.torn_files --folders 20 --seed 3 --experiments squad "cpt full"

A bit is flipped, a file is cut short, removed, or exchanged with another one or with that of another run. Prints a
line a folder and what was wrong; the exit status is 1 if something was.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.storm import Storm, clear, found, is_sentence, options

WAYS = ("a bit", "a byte", "cut", "removed", "emptied", "exchanged", "of another run")


def damage(run: Path, other: Path, draw: random.Random) -> str:
    """Damages one file, and says how."""
    files = sorted(file for file in run.rglob("*") if file.is_file() and "tensorboard" not in file.parts)
    kinds = sorted({file.relative_to(run).parts[0] for file in files})  # journal.jsonl as often as all checkpoints
    kind, way = draw.choice([*kinds, "journal.jsonl", "checkpoints"]), draw.choice(WAYS)
    of_kind = [file for file in files if file.relative_to(run).parts[0] == kind] or files
    file = draw.choice(of_kind)
    content, twin = bytearray(file.read_bytes()), other / file.relative_to(run)
    if way in ("a bit", "a byte") and content:
        place = draw.randrange(len(content))
        content[place] ^= 1 << draw.randrange(8) if way == "a bit" else draw.randint(1, 255)
        file.write_bytes(content)
    elif way == "removed":
        file.unlink()
    elif way == "exchanged" and len(files) > 1:
        second = draw.choice([own for own in files if own != file])
        file.write_bytes(second.read_bytes())
        second.write_bytes(content)
    elif way == "of another run" and twin.is_file():
        shutil.copyfile(twin, file)
    else:
        file.write_bytes(content[: draw.randrange(len(content) + 1) if way == "cut" else 0])
    return f"{way}: {file.relative_to(run)}"


def same(one: tuple[Any, str | None], other: tuple[Any, str | None], said: str) -> bool:
    """Whether two runs came to the same; self-edits may be missing where it is said that they were damaged."""
    return one[0] == other[0] and (one[1] == other[1] or "does not have the best cell's" in said)


def half(run: Path, draw: random.Random) -> None:
    """Makes of a finished run one that was killed: a part of its journal, and nothing that came at the end."""
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[: draw.randrange(1, len(lines))]))
    for name in ("results.json", "report.html", "self_edits.jsonl"):
        (run / name).unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 if a folder gave other results in silence, or a traceback."""
    asked = options(arguments, __doc__, folders=500)
    draw, outcomes, wrong = random.Random(asked.seed), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="torn-files-", ignore_cleanup_errors=True) as scratch:
        storm = Storm(Path(scratch))
        while outcomes.total() < asked.folders and time.monotonic() < asked.until and len(wrong) < 5:
            name, number = asked.experiments[outcomes.total() % len(asked.experiments)], outcomes.total()
            reference, other = storm.reference(name), storm.reference(name, "--seed", "1")
            run = storm.folder / f"torn-{number}"
            shutil.copytree(reference, run)
            if draw.random() < 0.2:
                half(run, draw)
            how = damage(run, other, draw)
            ended = storm.run(name, run)
            said = f"{ended.out}{ended.err}"
            if "Traceback" in said or (ended.status and not is_sentence(ended)):
                outcome, trouble = "traceback", f"status {ended.status}\n{said}"
            elif ended.status:
                outcome, trouble = "refused", ""
            elif not same(found(run), found(reference), said):
                outcome, trouble = "other results", said
            else:
                outcome, trouble = ("done again" if "again" in ended.out else "equal"), ""
            outcomes[outcome] += 1
            shown = ended.err.strip().partition("\n")[0][:150] if ended.status else ""
            print(f"{name:<16}{how:<60}{outcome}  {shown}{trouble}", flush=True)
            wrong += [f"{name}: {how}: {trouble}"] if trouble or outcome == "other results" else []
            clear(run)
    print(f"{outcomes.total()} folders: {dict(outcomes)}; {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
