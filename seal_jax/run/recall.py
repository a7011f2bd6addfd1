"""How well a library answers: with the right adapter, with the one it finds, and with none; and what it takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from seal_jax.analysis.statistics import GAIN, SHARE, bootstrap_mean, paired_bootstrap
from seal_jax.domains.passages import Passage
from seal_jax.graders.lexical import grade_by_match
from seal_jax.run.adapted import Answer
from seal_jax.run.journal import RunFolder, as_json, digest
from seal_jax.run.library import PIECE, Library
from seal_jax.run.runtime import describe_machine
from seal_jax.types import Query


def measure(library: Library, mine: Sequence[Passage], others: Sequence[Passage], *, seed: int) -> dict[str, Any]:
    """Accuracy with the right adapter, with the one found, and with none, over passages; what it takes."""
    asked = [question.question for passage in mine for question in passage.questions]
    right = [passage.id for passage in mine for _ in passage.questions]
    strange = [question.question for passage in others for question in passage.questions]
    of, of_strange = ([one.document for one in library.find(each)] for each in (asked, strange))
    answers, seconds = answered(library, list(zip([*asked, *asked, *strange], [*right, *of, *of_strange], strict=True)))
    n = len(asked)
    given, found, foreign = answers[:n], answers[n : 2 * n], answers[2 * n :]

    def each(passages: Sequence[Passage], answers: Sequence[str]) -> list[float | None]:
        """The accuracy on each passage."""
        rest, shares = iter(answers), list[float | None]()
        for passage in passages:
            queries = [Query(q.question, q.question, q.answer) for q in passage.questions]
            verdicts = grade_by_match(queries, [next(rest) for _ in queries])
            shares.append(sum(map(bool, verdicts)) / len(verdicts))
        return shares

    none, unlike = each(mine, [a.before for a in given]), each(others, [a.before for a in foreign])
    rows = [
        ("no adapter", mine, none, none),
        ("the right one, given", mine, each(mine, [a.after for a in given]), none),
        ("the one found", mine, each(mine, [a.after for a in found]), none),
        ("other passages, no adapter", others, unlike, unlike),
        ("other passages, the library", others, each(others, [a.after for a in foreign]), unlike),
    ]
    accuracy = {
        "title": "Accuracy, %",
        "columns": ["", "passages", "questions", "right", "against no adapter, points"],
        "rows": [
            [label, len(of), sum(len(p.questions) for p in of), bootstrap_mean(own, seed=seed, within=SHARE).text(),
             "" if own is base else paired_bootstrap(base, own, seed=seed, within=GAIN).text(form="+.1f")]
            for label, of, own, base in rows
        ],
        "note": "95 % intervals, paired by passage. No adapter: asked under the passage's title; on other passages, as "
        "the library asks: under the title of the document it found, or under none.",
    }  # fmt: skip
    entries = [entry for entry in library.entries() if entry.name in set(right)]
    sizes = [sum(f.stat().st_size for f in library.path(e.name).iterdir()) for e in entries]
    facts = {
        "questions whose document was found": sum(a.document == of for a, of in zip(found, right, strict=True)),
        "questions given another document": sum(
            a.document not in (None, of) for a, of in zip(found, right, strict=True)
        ),
        "of": len(asked),
        "questions on other passages given a document": sum(a.document is not None for a in foreign),
        "of as many as": len(foreign),
        "seconds to teach a document": sum(e.seconds for e in entries) / len(entries),
        "MB of a document": sum(sizes) / len(sizes) / 1e6,
        "seconds for both answers to a question, of many at once": seconds,
    }
    costs = {"title": "Found, and what it takes", "columns": ["", ""], "rows": [list(pair) for pair in facts.items()]}
    return {
        "tables": [accuracy, costs],
        "machine": describe_machine(),
        "rows": [[label, own] for label, _, own, _ in rows],
    }


def answered(library: Library, pairs: Sequence[tuple[str, str | None]]) -> tuple[list[Answer], float]:
    """A question and its document each, asked once, and seconds a question. Each piece is on disk once it is done."""
    once, adapters = list(dict.fromkeys(pairs)), {entry.name: entry.adapter for entry in library.entries()}
    what = digest({"course": as_json(library.course), "adapters": adapters, "asked": once})
    said: list[Answer] = []
    with contextlib.closing(RunFolder(library.folder / f"asked-{what[:8]}", {"asked": what})) as journal:
        started = time.monotonic()
        journal.clock = lambda: {"asked": time.monotonic() - started}
        for start in range(0, len(once), PIECE):
            questions, documents = zip(*once[start : start + PIECE], strict=True)
            piece = journal.once(f"from {start}", partial(library.ask_of, questions, documents))
            said += [Answer(**answer) for answer in piece]
            library.say(f"{len(said)} of {len(once)} questions answered")
        by_pair = dict(zip(once, said, strict=True))
        return [by_pair[pair] for pair in pairs], journal.timings["asked"] / len(once)
