"""From training sequences to trained adapters: the host's side of the inner loop, and of the outer SFT alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seal_jax.engine import batching, inner
from seal_jax.engine.inner import Chunk, Optimiser
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.types import HParams, LanguageModel, Settings, require_at_least

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
    chunk: int | None = None  # adapters trained at a time; None: as many as fit in memory (memory.py)
    width_cuts: tuple[int, ...] = (32, 40, 56, 72, 192, 256, 320)  # tokens; steps are cut to the narrowest that fits

    def __post_init__(self) -> None:
        require_at_least(1, rank=self.rank, epochs=self.epochs, batch_size=self.batch_size)
        require_at_least(0, learning_rate=self.learning_rate)
        if set(self.projections) - set(lora.PROJECTIONS):
            raise ValueError(f"projections are {self.projections}; expected some of {', '.join(lora.PROJECTIONS)}")
        if self.chunk is not None:
            require_at_least(1, chunk=self.chunk)
        if self.batch_size % self.optimiser.accumulate:
            raise ValueError(f"accumulate {self.optimiser.accumulate} does not divide batch_size {self.batch_size}")


class Shapes(NamedTuple):
    """Sizes fixed for a whole run, so that each program is compiled once."""

    widths: tuple[int, ...]  # of training steps, tokens
    capacity: int  # training sequences a self-edit
    questions: int  # a task
    question_width: int  # tokens of a question's prompt
    gold_width: int  # tokens of a gold answer


def train(
    lm: LanguageModel,
    edits: Sequence[Sequence[batching.Tokens]],
    config: FineTuning,
    shapes: Shapes,
    *,
    seed: int,
    chunk: Chunk,
    fixed: Adapter | None = None,
    settings: Sequence[Settings | None] | None = None,
) -> tuple[Adapter, Float[np.ndarray, "E S"]]:
    """One adapter for each of E self-edits' sequences, and its loss at every step (NaN where it rested).

    With `fixed`, E adapters that stay as they are, each is trained on top of its own. `settings` are what the rows
    have of their own: a self-edit's learning rate and epochs where it chose any, or a cell's of an ablation; what is
    not said there is `config`'s. `seed` names the training run: the order of sequences follows from it, and so does
    the initialisation, together with the self-edit's own tokens where that is `per_edit`. Neighbours and chunks have
    no say in either.

    Raises:
        ValueError: a row that wants more epochs, a larger rank or other projections than `config` has.
    """
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
    )
    fresh = fresh_adapters(lm, hparams, config, chunk)
    if any(set(chosen.projections) != set(config.projections) for chosen in own):
        fresh = _only(fresh, [chosen.projections for chosen in own])
    trained, metrics = inner.adapt_many(
        lm.model, lm.params, fresh, batch, hparams, config.optimiser, chunk=chunk, mesh=lm.mesh, fixed=fixed
    )
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


def log_likelihoods(
    lm: LanguageModel,
    adapters: Adapter,
    edits: Sequence[Sequence[batching.Tokens]],
    config: FineTuning,
    shapes: Shapes,
    *,
    chunk: Chunk,
) -> Float[np.ndarray, "E"]:
    """How well each of E adapters knows its training sequences: mean log-probability of a token, nats."""
    batch_size = min(config.batch_size, shapes.capacity)
    batch = batching.make_batch(
        edits, epochs=1, batch_size=batch_size, widths=shapes.widths, capacity=shapes.capacity, seed=0
    )
    loss_chunk = config.optimiser.loss_chunk
    return np.asarray(
        inner.log_likelihood_many(
            lm.model, lm.params, adapters, batch, loss_chunk=loss_chunk, chunk=chunk, mesh=lm.mesh
        )
    )


def fresh_adapters(lm: LanguageModel, hparams: HParams, config: FineTuning, chunk: Chunk) -> Adapter:
    """E adapters before their first step: they change nothing yet. One program serves any E up to a chunk."""
    total = len(hparams.seed)
    places = np.resize(np.arange(total), batching.round_up(total, chunk.planned))
    filled = jax.tree.map(lambda x: x[places], hparams)
    adapters = init_adapters(lm.params["blocks"], filled, config.projections, config.rank)
    return lora.take(adapters, slice(0, total))


def untrained(lm: LanguageModel, count: int, config: FineTuning, chunk: Chunk) -> Adapter:
    """Adapters that change nothing, of the shape of those in training: with them, one program asks both."""
    ones, zeros = np.ones(count, np.float32), np.zeros(count, np.int32)
    rank = np.full(count, config.rank, np.int32)
    hparams = HParams(learning_rate=ones, num_steps=zeros, alpha=ones, rank=rank, seed=zeros)
    return fresh_adapters(lm, hparams, config, chunk)


def adapter_shapes(lm: LanguageModel, config: FineTuning, count: int | None = None) -> Adapter:
    """What a checkpoint of one adapter holds, or of `count` that train together (`RunFolder.once_tree`)."""
    nothing = np.zeros(count or 1, np.int32)
    hparams = HParams(learning_rate=nothing, num_steps=nothing, alpha=nothing, rank=nothing, seed=nothing)
    many = jax.eval_shape(
        lambda blocks: init_adapters(blocks, hparams, config.projections, config.rank), lm.params["blocks"]
    )
    own = 1 if count is None else 0  # axes to drop
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[own:], leaf.dtype), many)


@partial(jax.jit, static_argnames=("projections", "max_rank"))
def init_adapters(blocks: dict, hparams: HParams, projections: tuple[str, ...], max_rank: int) -> Adapter:
    """E fresh adapters from E seeds, ranks and alphas: `lora.init`, vmapped."""

    def one(h: HParams) -> Adapter:
        return lora.init(jax.random.key(h.seed), blocks, projections, max_rank=max_rank, rank=h.rank, alpha=h.alpha)

    return jax.vmap(one)(hparams)


def _fingerprint(seed: int, sequences: Sequence[batching.Tokens]) -> int:
    words = np.fromiter((i for s in sequences for i in (len(s.ids), *s.ids)), np.uint32)
    return int(np.random.default_rng([seed, *words]).integers(2**31))
