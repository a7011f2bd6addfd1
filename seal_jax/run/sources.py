"""Recorded self-edits of several sources: files of the reference's form, or run folders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seal_jax.domains import squad
from seal_jax.domains.passages import load_recorded
from seal_jax.run import passages, plan
from seal_jax.run.plan import Stage


class Sources(NamedTuple):
    """The passages that all sources share, and each source's self-edits for them."""

    passages: list[squad.Passage]
    completions: dict[str, dict[str, tuple[str, ...]]]  # source -> passage -> its self-edits
    left_out: int  # passages that some source lacks
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]


def load(config: Any) -> Sources:
    """Reads the sources and keeps what can be compared. `config` is experiments.evaluate_edits'.

    Raises:
        ValueError: no source, two of one name, or no passage that all of them hold.
    """
    if not config.edits:
        raise ValueError("--edits is missing: name files or run folders of self-edits to score")
    found = together("--edits", config.edits, config, stage=config.stage, samples=config.samples)
    stages = [Stage("base", (plan.BASE,))]
    count = len(found.passages)
    if config.passage_only:
        stages.append(Stage("passage alone", self_edits=count, seeds=config.seeds, alone=True))
    for label, own in found.completions.items():
        stages.append(Stage(label, self_edits=sum(len(own[p.id]) for p in found.passages), seeds=config.seeds))
    return found._replace(stages=stages)


def together(
    option: str,
    entries: Sequence[str],
    config: Any,
    *,
    stage: str | None = None,
    samples: int | None = None,
    taken: Collection[str] = ("base", "passage"),
) -> Sources:
    """The sources that an option names, each PATH or LABEL=PATH, over the passages that all of them hold.

    `taken` are names of other rows; of the config, `passages` and `data_seed` say which passages are drawn.

    Raises:
        ValueError: two sources of one name, or no passage that all of them hold.
    """
    sources: dict[str, list[squad.Passage]] = {}
    for entry in entries:
        label, _, path = entry.rpartition("=")
        label = label or f"edits of {Path(path).name if Path(path).is_dir() else Path(path).stem}"
        if label in sources or label in taken:
            already = "two sources are" if label in sources else "a row of the table is"
            raise ValueError(f"{option}: {already} called {label!r}; give {path} another name: LABEL={path}")
        sources[label] = load_recorded(path, stage)
    completions = {
        label: {p.id: p.completions[:samples] for p in read if p.completions} for label, read in sources.items()
    }
    everything = {p.id for read in sources.values() for p in read}
    shared = [p for p in next(iter(sources.values())) if all(p.id in own for own in completions.values())]
    if not shared:
        raise ValueError(
            f"{option}: no passage has completions in all of "
            + ", ".join(f"{label} ({len(own)})" for label, own in completions.items())
            + "; passages are matched by title and context"
        )
    chosen = squad.shuffled(shared, config.data_seed)[: config.passages] if config.passages else shared
    texts = [p._replace(completions=()) for p in chosen]
    left_out = len(everything) - len(shared)
    lines = [f"{len(chosen)} passages, {passages.questions_of(chosen)} questions; {left_out} left out", *entries]
    return Sources(texts, completions, left_out, [passages.prompt_texts(config), sources], lines, [])
