"""From training sequences to trained adapters: the host's side of the inner loop, and of the outer SFT alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seal_jax.engine import batching, inner
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.inner import Optimiser, Recipe
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import Loss, next_token
from seal_jax.types import PROJECTIONS, Compute, HParams, LanguageModel, Settings, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How an adapter is trained on sequences. FineTuning() is the paper's inner loop (its section B.1)."""

    projections: tuple[str, ...] = ("q_proj", "v_proj")  # with an adapter; PEFT's default for the paper's model
    rank: int = 32  # LoRA r
    alpha: float = 64.0  # LoRA alpha
    learning_rate: float = 1e-3  # decayed linearly to 0
    epochs: int = 10  # passes over a self-edit's sequences; where it chooses its own (types.Settings), the most
    batch_size: int = 1  # sequences a step
    optimiser: Optimiser = Optimiser()
    initialisation: Literal["stored", "per_edit"] = "per_edit"  # one A for all self-edits, or a key for each

    def __post_init__(self) -> None:
        require_at_least(1, rank=self.rank, epochs=self.epochs, batch_size=self.batch_size)
        require_at_least(0, learning_rate=self.learning_rate)
        if set(self.projections) - set(PROJECTIONS):
            raise ValueError(f"projections are {self.projections}; expected some of {', '.join(PROJECTIONS)}")


class Shapes(NamedTuple):
    """Sizes fixed for a whole run, so that each program is compiled once."""

    widths: tuple[int, ...]  # of training steps, tokens
    capacity: int  # training sequences a self-edit
    questions: int  # a task
    question_width: int  # tokens of a question's prompt
    gold_width: int  # tokens of a gold answer


class Trainer(NamedTuple):
    """How adapters are trained through a run, whatever they are trained on."""

    config: FineTuning
    shapes: Shapes
    compute: Compute
    chunk: Chunk  # adapters at a time
    loss: Loss = next_token


def make_trainer(
    config: FineTuning, shapes: Shapes, compute: Compute, *, loss: Loss = next_token, **chunk: Any
) -> Trainer:
    """A trainer of `compute.chunk` adapters at a time (1 where that is open); `chunk` are other fields of `Chunk`."""
    return Trainer(config, shapes, compute, Chunk(compute.chunk or 1, **chunk), loss)


def train(
    lm: LanguageModel,
    edits: Sequence[Sequence[batching.Tokens]],
    trainer: Trainer,
    *,
    seed: int,
    fixed: Adapter | None = None,
    settings: Sequence[Settings | None] | None = None,
    numbers: Mapping[str, float | Sequence[float]] | None = None,
) -> tuple[Adapter, Float[np.ndarray, "E S"]]:
    """One adapter for each of E self-edits' sequences, and its loss at every step (NaN on skipped steps).

    With `fixed`, E adapters that stay as they are, each is trained on top of its own. `settings` are what a row has of
    its own: a self-edit's learning rate and epochs where it chose any, or a cell's of an ablation; the rest is
    `trainer.config`'s. `numbers` are what the loss is told, one for all rows or one for each. `seed` names the training
    run: the order of sequences follows from it, and so does the initialisation, together with the self-edit's tokens
    where that is `per_edit`. Neighbours and chunks change neither.

    Raises:
        ValueError: a row that wants more epochs, a larger rank or other projections than `config` has.
    """
    config, shapes = trainer.config, trainer.shapes
    total, batch_size = len(edits), min(config.batch_size, shapes.capacity)
    own = own_settings(config, settings or [None] * total)
    epochs = [chosen.epochs for chosen in own]
    batch = batching.make_batch(
        edits, epochs=config.epochs, batch_size=batch_size, widths=shapes.widths, capacity=shapes.capacity, seed=seed,
        own_epochs=epochs,
    )  # fmt: skip
    steps = [
        batching.num_steps(len(sequences), epochs=each, batch_size=batch_size)
        for sequences, each in zip(edits, epochs, strict=True)
    ]
    # One stored initialisation, or one for each self-edit that depends on what it says and not on its neighbours.
    seeds = (
        [seed] * total if config.initialisation == "stored" else [_fingerprint(seed, sequences) for sequences in edits]
    )
    hparams = HParams(
        learning_rate=np.asarray([chosen.learning_rate for chosen in own], np.float32),
        num_steps=np.asarray(steps, np.int32),
        alpha=np.asarray([chosen.alpha for chosen in own], np.float32),
        rank=np.asarray([chosen.rank for chosen in own], np.int32),
        seed=np.asarray(seeds, np.int32),
        numbers={name: np.resize(np.asarray(value, np.float32), total) for name, value in (numbers or {}).items()},
    )
    fresh = fresh_adapters(lm, hparams, trainer)
    if any(set(chosen.projections) != set(config.projections) for chosen in own):
        fresh = _only(fresh, [chosen.projections for chosen in own])
    trained, metrics = inner.adapt_many(
        lm.model, lm.params, fresh, batch, hparams, Recipe(config.optimiser, trainer.loss, trainer.compute),
        chunk=trainer.chunk, mesh=lm.mesh, fixed=fixed,
    )  # fmt: skip
    return trained, np.asarray(metrics.loss)


def own_settings(config: FineTuning, settings: Sequence[Settings | None]) -> list[FineTuning]:
    """How each row is trained: `config`, but for what the row has of its own.

    Raises:
        ValueError: a row that does not fit into the program that `config` describes (names it).
    """
    own = []
    for e, chosen in enumerate(settings):
        said = {name: value for name, value in (chosen._asdict() if chosen else {}).items() if value is not None}
        row = dataclasses.replace(config, **said)
        if row.rank > config.rank:
            raise ValueError(f"self-edit {e} asks for rank {row.rank}; the program has room for 1 to {config.rank}")
        if not row.projections or not set(row.projections) <= set(config.projections):
            raise ValueError(
                f"self-edit {e} asks for an adapter on {list(row.projections)}; the program has {config.projections}"
            )
        own.append(row)
    return own


def _only(adapters: Adapter, projections: Sequence[Sequence[str]]) -> Adapter:
    """Fresh adapters, each with zeros in the projections that it leaves out.

    With A and B both zero so is the gradient of either, exactly: they stay so, as columns past the rank do.
    """

    def kept(name: str) -> np.ndarray:
        return np.array([name in own for own in projections])[:, None, None, None]

    return adapters.replace(a={name: jnp.where(kept(name), w, 0) for name, w in adapters.a.items()})


def fresh_adapters(lm: LanguageModel, hparams: HParams, trainer: Trainer) -> Adapter:
    """E adapters before their first step: they change nothing yet. One program serves any E up to a chunk."""
    total = len(hparams.seed)
    places = np.resize(np.arange(total), batching.round_up(total, trainer.chunk.planned))
    filled = jax.tree.map(lambda x: x[places], hparams)
    config = trainer.config
    adapters = init_adapters(lm.params["blocks"], filled, config.projections, config.rank)
    return lora.take(adapters, slice(0, total))


def untrained(lm: LanguageModel, count: int, trainer: Trainer) -> Adapter:
    """Adapters that change nothing, of the shape of those in training: with them, one program asks both."""
    ones, zeros = np.ones(count, np.float32), np.zeros(count, np.int32)
    rank = np.full(count, trainer.config.rank, np.int32)
    hparams = HParams(learning_rate=ones, num_steps=zeros, alpha=ones, rank=rank, seed=zeros)
    return fresh_adapters(lm, hparams, trainer)


def adapter_shapes(lm: LanguageModel, config: FineTuning, count: int | None = None) -> Adapter:
    """What a checkpoint of one adapter holds, or of `count` that train together (`Journal.once_tree`)."""
    nothing = np.zeros(count or 1, np.int32)
    hparams = HParams(learning_rate=nothing, num_steps=nothing, alpha=nothing, rank=nothing, seed=nothing)
    many = jax.eval_shape(
        lambda blocks: init_adapters(blocks, hparams, config.projections, config.rank), lm.params["blocks"]
    )
    own = 1 if count is None else 0  # axes to drop
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[own:], leaf.dtype), many)


@partial(jax.jit, static_argnames=("projections", "max_rank"))
def init_adapters(blocks: dict[str, Any], hparams: HParams, projections: tuple[str, ...], max_rank: int) -> Adapter:
    """E fresh adapters from E seeds, ranks and alphas: `lora.init`, vmapped."""

    def one(h: HParams) -> Adapter:
        return lora.init(jax.random.key(h.seed), blocks, projections, max_rank=max_rank, rank=h.rank, alpha=h.alpha)

    return jax.vmap(one)(hparams)


def _fingerprint(seed: int, sequences: Sequence[batching.Tokens]) -> int:
    words = np.fromiter((i for s in sequences for i in (len(s.ids), *s.ids)), np.uint32)
    return int(np.random.default_rng([seed, *words]).integers(2**31))
