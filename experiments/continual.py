"""Continual self-edits: streams of passages, each merged into the weights before the next, and what is forgotten.

    python -m experiments.continual demo                     # 2 CPU cores: minutes; a 135M model, invented facts
    python -m experiments.continual paper                    # 64 streams of 8: a GPU that holds Qwen2.5-7B
    python -m experiments.continual smoke                    # a minute; shows that everything runs, and no more
    python -m experiments.continual demo --options none replay+kl --replay None --kl 0.3
    python -m experiments.continual demo --rows seal spa distilled_text --options none replay

After each edit the model is asked about all passages of its stream: row r, column c of the matrix is the accuracy on
passage c after edit r. The paper has this for plain merging (`--options none`): 30.7 % before, 41.5 % on each passage
right after its own edit, 24.7 % on all after the last. The other options are answers to that forgetting which the paper
leaves open: `replay` trains again on earlier self-edits, `kl` holds each edit close to the model before it; they join
with a plus. All options meet the same streams and the same draws, and are compared stream by stream.

With `--rows`, each passage is taught by the text and the loss of a row of experiments.rivals, or by recorded
self-edits, in place of what the model writes as the stream goes; each of them under every option.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from typing import Any, Literal

from seal_jax.engine.sampler import Sampling
from seal_jax.nn.losses import next_token
from seal_jax.run import command, passages, rivals, streams
from seal_jax.run.passages import Knowledge
from seal_jax.run.session import Experiment, Model, Prepared, Preset, Session
from seal_jax.run.streams import Streams, Way
from seal_jax.seal import continual
from seal_jax.seal.continual import Retention, Stream
from seal_jax.types import Compute, SelfEdit, require_at_least

OPTIONS = ("none", "replay", "kl")


def retention(config: Config, option: str) -> Retention:
    """What an option's name stands for.

    Raises:
        ValueError: an unknown name, or none joined with another.
    """
    parts = option.split("+")
    for part in parts:
        if part not in OPTIONS:
            close = difflib.get_close_matches(part, OPTIONS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(OPTIONS)}, or some joined by a plus"
            raise ValueError(f"--options {option}: there is no option {part!r}; {hint}")
    if "none" in parts and len(parts) > 1:
        raise ValueError(f"--options {option}: none cannot be joined with another")
    return Retention(
        replay=config.replay if "replay" in parts else 0,
        kl=config.kl if "kl" in parts else 0.0,
    )


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """The streams, and what is done against forgetting."""

    split: Literal["train", "held_out"] = "held_out"
    """Which passages of a data set that has both; a file is taken whole."""
    streams: int = 64
    """Streams, side by side on the adapter axis (paper: 64). No passage is in two of them."""
    stream_length: int = 8
    """Passages of a stream (paper: 8)."""
    options: tuple[str, ...] = ("none",)
    """What to compare: none, replay, kl, or the last two joined by a plus (replay+kl)."""
    replay: int | None = 2
    """Of option replay: earlier self-edits trained on again with each new one; None: all of the stream's."""
    kl: float = 0.1
    """Of option kl: the weight of KL(before || now), nats a token, beside the loss."""
    rows: tuple[str, ...] = ()
    """How passages are taught: rows of experiments.rivals, such as seal, spa or distilled_text, their text written by
    the model as it was. Without any, and without --recorded, by what the model writes as the stream goes (paper)."""
    recorded: tuple[str, ...] = ()
    """Recorded self-edits, a row more each: NAME=FILE. The passages that all hold are the run's, in place of --data."""
    budget: float = 4.0
    """Of rows: tokens of a passage's synthetic sequences, as a multiple of the passage's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, streams=self.streams, stream_length=self.stream_length)
        require_at_least(0, budget=self.budget)
        if math.isinf(self.budget):
            raise ValueError("--budget inf: expected a multiple of the passage's tokens, such as 4")
        rivals.require_rows(self.rows, rivals.IN_STREAMS)
        with_kl = [option for option in self.options if "kl" in option.split("+")]
        if with_kl and (own := [row for row in self.rows if row in rivals.LOSSES]):
            raise ValueError(
                f"--options {with_kl[0]} adds to the next token's loss, and --rows {own[0]} has a loss of its own: "
                "leave out one of them"
            )
        if not self.options or len(set(self.options)) < len(self.options):
            raise ValueError(f"--options {' '.join(self.options)}: expected one or more, none of them twice")
        for name in self.options:
            retention(self, name)

    @property
    def passages(self) -> int:
        """Of all streams."""
        return self.streams * self.stream_length

    @property
    def sequences(self) -> int:
        """Training sequences of a self-edit at most."""
        return round(self.max_sequences * (max(1.0, self.budget) if self.rows or self.recorded else 1))

    def lessons(self, option: str) -> int:
        """Self-edits that an adapter is trained on at most."""
        return retention(self, option).self_edits(self.stream_length)


# Departures from the paper are those of experiments.squad. Streams are trained 16 at a time: each holds the adapters of
# all its edits (at 7B, q and v: 0.3 GiB), and is read by as many rows as it has questions.
PAPER = Config("paper", **passages.PAPER)

DEMO = Config(
    "demo",
    **passages.SMALL
    | {
        "sampling": Sampling(max_tokens=96, temperature=0.7, top_p=0.95),
        "max_sequences": 6,
        "inner": dataclasses.replace(passages.SMALL["inner"], epochs=6),
    },
    split="train",
    streams=8,
    stream_length=4,
    options=OPTIONS,
    replay=1,
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    **passages.SMALLEST | {"max_sequences": 3},
    streams=2,
    stream_length=2,
    budget=1.0,
)

PRESETS = {
    "demo": Preset(
        "Minutes on 2 CPU cores: a 135M model, invented facts, all options.",
        DEMO,
        Compute(chunk=8, width_cuts=(24, 32, 96)),
    ),
    "paper": Preset("The paper's streams and inner loop, nothing done against forgetting.", PAPER, Compute(chunk=16)),
    "smoke": Preset("Two streams of two, as small as it goes.", SMOKE, Compute(chunk=2, width_cuts=(96,))),
}


def prepare(config: Config, data: Streams, model: Model) -> Prepared:
    """All options share one program: an adapter has room for the most self-edits that any of them trains on."""
    lessons = max(map(config.lessons, config.options))
    ready = passages.prepare(config, model, data.everything, capacity=config.sequences * lessons)
    if not (config.rows or config.recorded):
        return ready
    rivals.require_view(config, model.speaker, ready)
    shapes = ready.shapes._replace(taught=rivals.taught(config))
    return ready._replace(shapes=shapes, most=rivals.most(config, ready, config.sequences))


def run(here: Session, data: Streams) -> dict[str, Any]:
    """The streams as they are, then in each way and under each option."""
    config, loop, found = here.config, here.loop, dict[Way, list[Stream]]()
    base = continual.try_base(here.lm, data.streams, loop, name="streams")
    texts: dict[str, list[list[SelfEdit]]] = {}
    for way in streams.ways(config, data.sources):
        if way.row and way.row not in texts:
            texts[way.row] = streams.written(here, data, way.row)
        taught = texts[way.row] if way.row else None
        own = loop._replace(trainer=loop.trainer._replace(loss=rivals.LOSSES.get(way.row or "", next_token)))
        kept = retention(config, way.option)
        found[way] = continual.run_streams(here.lm, data.streams, base, kept, own, name=way.name, taught=taught)
        streams.record(here, way.name, found[way])
    return here.finish(
        streams.rows(config, found, data),
        data="recorded" if config.recorded else config.data,
        trends=[streams.so_far(config, found)],
        tables=[streams.compare(config, found), streams.differences(config, found)],
        matrices=[streams.heat_map(way, done) for way, done in found.items()],
    )


EXPERIMENT = Experiment("continual", __doc__ or "", PRESETS, streams.cut, prepare, run)

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
