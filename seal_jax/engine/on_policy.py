"""On-policy distillation: an adapter is trained on what it says itself, sampled anew every few epochs (SDFT).

    each adapter answers its prompts -> a teacher reads the answers with the passage in view -> a few epochs -> again

Self-Distillation Fine-Tuning (Shenfeld et al. 2026, arXiv 2601.19897). The loss of each sampled token is KL(teacher ||
student), `losses.distillation`: the paper's equation 1 has the other direction, and its results were computed with this
one, by its authors' account (github.com/idanshen/Self-Distillation, issue 5). Departures: the teacher is the model
before the adapter (TRL's default, `teacher_model_kind="base"`) where the paper's follows the student as a moving
average; text is sampled every few epochs and not at every step. Adam's moments and the learning rate go on from one
phase to the next, as in one training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from seal_jax.engine import batching, training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.chunks import in_chunks
from seal_jax.engine.inner import InnerState
from seal_jax.engine.sampler import Completions, Sampling, row_keys, sample
from seal_jax.engine.training import Trainer
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.sharding import lanes, spread
from seal_jax.types import LanguageModel, Settings, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Float

WIDTH = 64  # tokens that prompts are padded to multiples of: a program each


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """When adapters write what they are trained on, and how."""

    every: int = 3  # epochs over what was written, before it is written anew; ours
    temperature: float = 1.0  # the model's own distribution (TRL's default)
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_at_least(1, every=self.every)
        Sampling(1, self.temperature, self.top_p)

    def phases(self, epochs: int) -> list[int]:
        """The epochs of each phase."""
        return [min(self.every, epochs - begun) for begun in range(0, epochs, self.every)]


class _Prompt(NamedTuple):
    """What an adapter is asked, and where the answer goes."""

    edit: int
    sequence: int
    ids: list[int]
    limit: int  # tokens of its answer


def train_each(
    lm: LanguageModel,
    edits: Sequence[Sequence[Tokens]],
    trainer: Trainer,
    *,
    how: OnPolicy,
    max_tokens: int,
    seed: int | Sequence[int],
    settings: Sequence[Settings | None] | None = None,
    skip: Collection[int] = (),
) -> Iterator[tuple[int, Adapter, Float[np.ndarray, "S"]]]:
    """`training.train_each`, of adapters that write their answers themselves, of at most `max_tokens`.

    A sequence with a prompt is asked: its answer, and the end of its view, are written anew in each phase. The others,
    such as the passage, stay. As many adapters as are planned for at a time are trained through all their phases; one
    that was interrupted is trained again with its company, so that it computes the same numbers.

    Raises:
        ValueError: self-edits with settings of their own.
    """
    if any(settings or ()):
        raise ValueError("self-edits with settings of their own cannot be trained on-policy; expected none")
    hosts, numbers = training.sharing(lm, len(edits)), list(range(len(edits)))
    lm = lm._replace(hosts=None)
    if hosts is not None:  # each process trains its share by itself
        numbers, compute = numbers[hosts.index :: hosts.count], trainer.compute
        share = dataclasses.replace(compute, chunk=max(1, (compute.chunk or 1) // hosts.count))
        trainer = trainer._replace(compute=share, chunk=trainer.chunk.part(hosts.count))
    seeds, size = np.broadcast_to(np.asarray(seed, np.int64), len(edits)).tolist(), trainer.chunk.planned
    width = max((len(s.ids[: s.loss_from]) for own in edits for s in own), default=1)
    for first in range(0, len(numbers), size):
        group = numbers[first : first + size]
        if not set(group) <= set(skip):
            trained = _train(lm, [edits[e] for e in group], trainer, how, max_tokens, [seeds[e] for e in group], width)
            yield from ((e, *own) for e, own in zip(group, trained, strict=True) if e not in skip)


def _train(
    lm: LanguageModel,
    edits: Sequence[Sequence[Tokens]],
    trainer: Trainer,
    how: OnPolicy,
    max_tokens: int,
    seeds: Sequence[int],
    width: int,
) -> list[tuple[Adapter, Float[np.ndarray, "S"]]]:
    """All phases of some adapters: each one's last, and its losses."""
    config, names = trainer.config, [training.fingerprint(*own) for own in zip(seeds, edits, strict=True)]
    batch_size = min(config.batch_size, trainer.shapes.capacity)
    steps = [batching.num_steps(len(own), epochs=config.epochs, batch_size=batch_size) for own in edits]
    states, losses = dict[int, InnerState](), [list[np.ndarray]() for _ in edits]
    adapters = training.untrained(lm, len(edits), trainer)
    for phase, epochs in enumerate(how.phases(config.epochs)):
        written = answered(
            lm, adapters, edits, trainer, how, names=names, phase=phase, max_tokens=max_tokens, width=width
        )
        adapters, own = training.train(
            lm, written, trainer._replace(config=dataclasses.replace(config, epochs=epochs)),
            seed=[_of_phase(seed, phase) for seed in seeds], start=states.__getitem__ if states else None,
            keep=states.__setitem__, horizon=steps,
        )  # fmt: skip
        for e, more in enumerate(own):
            losses[e].append(more)
    return [(lora.take(adapters, e), np.concatenate(own)) for e, own in enumerate(losses)]


def answered(
    lm: LanguageModel,
    adapters: Adapter,
    edits: Sequence[Sequence[Tokens]],
    trainer: Trainer,
    how: OnPolicy,
    *,
    names: Sequence[int],
    phase: int,
    max_tokens: int,
    width: int,
) -> list[list[Tokens]]:
    """The edits, with what each of E adapters answers now. What is drawn follows from an edit's name, phase and place.

    An answer that ended by itself ends as answers do (`Codec.end`); one that a step has no room for is cut.
    """
    most, end = trainer.shapes.widths[-1], lm.codec.encode_more(lm.codec.end) if lm.codec.end else []
    asked = [
        _Prompt(e, n, s.ids[: s.loss_from], max(0, min(max_tokens, most - s.loss_from - len(end))))
        for e, own in enumerate(edits)
        for n, s in enumerate(own)
        if s.loss_from
    ]
    found = [list(own) for own in edits]
    if not asked:
        return found
    together = max(1, trainer.shapes.questions)  # of one adapter, as when it answers
    by_edit = [[prompt for prompt in asked if prompt.edit == e] for e in range(len(edits))]
    parts = [own[at : at + together] for own in by_edit for at in range(0, len(own), together)]
    of, shape = np.array([part[0].edit for part in parts]), (len(parts), together, 1)
    sides = [
        batching.left_pad(
            [*(prompt.ids for prompt in part), *([[]] * (together - len(part)))], batching.round_up(width, WIDTH)
        )
        for part in parts
    ]
    tokens, valid = (np.stack(side) for side in zip(*sides, strict=True))
    limits, places = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for p, part in enumerate(parts):
        limits[p, : len(part), 0] = [prompt.limit for prompt in part]
        places[p, : len(part), 0] = [prompt.sequence for prompt in part]
    drawn = np.asarray(names)[of][:, None, None]
    sampling = Sampling(max_tokens, how.temperature, how.top_p)

    def run(index: np.ndarray, live: np.ndarray) -> Completions:
        keys = row_keys(0, drawn[index], np.array(phase), places[index])
        own = spread(lora.take(adapters, of[index]), lm.mesh)
        return sample(
            keys, lm.model, lm.params, own, tokens[index], valid[index], limits[index] * live[:, None, None],
            sampling=sampling, stop=lm.codec.stop, mesh=lm.mesh,
        )  # fmt: skip

    out = in_chunks(run, len(parts), trainer.chunk, devices=lanes(lm.mesh))
    written, lengths, stopped = (np.asarray(side[:, :, 0]) for side in out)
    for p, part in enumerate(parts):
        for q, prompt in enumerate(part):
            answer = written[p, q, : lengths[p, q]].tolist() + (end if stopped[p, q] else [])
            before = edits[prompt.edit][prompt.sequence]
            view = list(before.view)[: len(before.view) - (len(before.ids) - before.loss_from)]
            found[prompt.edit][prompt.sequence] = before._replace(ids=prompt.ids + answer, view=view + answer)
    return found


def _of_phase(seed: int, phase: int) -> int:
    """A seed of each phase: every one has shuffles of its own."""
    return int(np.random.default_rng([seed, phase]).integers(2**31))
