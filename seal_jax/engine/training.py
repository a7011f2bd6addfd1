"""From training sequences to trained adapters: the host's side of the inner loop, and of the outer SFT alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seal_jax.engine import batching, inner, schedule
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.inner import Given, InnerState, Lessons, Optimiser, Recipe, Start
from seal_jax.engine.schedule import Room, Tick
from seal_jax.engine.teachers import States
from seal_jax.nn import lora, sharding
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import Loss, next_token
from seal_jax.types import PROJECTIONS, Compute, Hosts, HParams, LanguageModel, Settings, require_at_least

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
    taught: bool = False  # some steps are given a teacher's hidden states: for the plan of memory alone
    prefix: int = 0  # keys and values a layer that some steps read besides: for the plan of memory alone


TICK_TOKENS = 192  # that a device computes at a time where nothing else is said: a CPU's core is then busy
COMPILING = 5e11, 5e15  # operations that a CPU, or an accelerator, does in the time in which a step is compiled


class Trainer(NamedTuple):
    """How adapters are trained through a run, whatever they are trained on."""

    config: FineTuning
    shapes: Shapes
    compute: Compute
    chunk: Chunk  # adapters that answer at a time
    loss: Loss = next_token
    watch: Callable[[int, int, int], None] | None = None  # called in training: tokens computed, of how many; adapters


def make_trainer(
    config: FineTuning, shapes: Shapes, compute: Compute, *, loss: Loss = next_token, **chunk: Any
) -> Trainer:
    """A trainer of `compute.chunk` adapters at a time (1 where that is open); `chunk` are other fields of `Chunk`."""
    return Trainer(config, shapes, compute, Chunk(compute.answer_chunk or compute.chunk or 1, **chunk), loss)


def train_each(
    lm: LanguageModel,
    edits: Sequence[Sequence[batching.Tokens]],
    trainer: Trainer,
    *,
    seed: int | Sequence[int],
    fixed: Adapter | None = None,
    settings: Sequence[Settings | None] | None = None,
    numbers: Mapping[str, float | Sequence[float]] | None = None,
    skip: Collection[int] = (),
    start: Callable[[int], Start] | None = None,
    keep: Callable[[int, InnerState], None] | None = None,
    horizon: Sequence[int] | None = None,
) -> Iterator[tuple[int, Adapter, Float[np.ndarray, "S"]]]:
    """Trains an adapter on each of E self-edits' sequences; yields (number, adapter, losses) as each finishes.

    With `fixed`, E adapters that stay as they are, each is trained on top of its own. `settings` are what a row has of
    its own: a self-edit's learning rate and epochs where it chose any, or a cell's of an ablation; the rest is
    `trainer.config`'s. `numbers` are what the loss is told, one for all rows or one for each. `seed` names the training
    run, or that of each row: the order of sequences follows from it, and so does the initialisation, together with the
    self-edit's tokens where that is `per_edit`. Neighbours change neither. Those in `skip` are left out. `start` gives
    each row's adapter before its first step, where that is not a fresh one by its settings, or a state to go on from,
    which `keep` is called with; `horizon` are then the steps of each row's whole training, by which its learning rate
    falls.

    If the device runs out of memory fewer adapters are trained at a time, which is said once; nothing finished is lost.
    Where processes share the work each yields those that it trained.

    Raises:
        ValueError: a row that wants more epochs, a larger rank or other projections than `config` has; more sequences
            or longer ones than `trainer.shapes` has room for.
    """
    if len(set(skip)) == len(edits):
        return
    config = trainer.config
    lessons, hparams, fresh = begin_each(
        lm, edits, trainer, seed=seed, settings=settings, numbers=numbers, horizon=horizon
    )
    seeds = np.broadcast_to(np.asarray(seed, np.int64), len(edits)).tolist()
    states = States(lm, edits, seeds, trainer.loss, fixed) if trainer.loss.teacher == "in_context" else None
    lessons = lessons._replace(taught=states)
    hosts = sharing(lm, len(edits))
    lanes = sharding.lanes(lm.mesh) * (hosts.count if hosts else 1)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    done, widths = set(skip), widths_for(parameters, lessons, trainer, lanes)

    def watch(computed: int, of: int) -> None:
        if trainer.watch is not None:
            trainer.watch(computed, of, len(edits) - len(skip))

    while True:
        room = room_of(trainer, lanes)
        finished = inner.adapt_each(
            lm.model, lm.params, start or fresh, lessons, Given(hparams, jax.device_get(fixed)),
            Recipe(config.optimiser, trainer.loss._replace(in_view=1.0), trainer.compute),  # the host tossed the coins
            widths=widths, room=room, mesh=lm.mesh, hosts=hosts, skip=frozenset(done), watch=watch, keep=keep,
        )  # fmt: skip
        try:
            for e, adapter, metrics in finished:
                done.add(e)
                if states is not None:
                    states.pop(e, None)
                yield e, adapter, np.asarray(metrics.loss)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or room.places == 1:
                raise
            trainer.chunk.halved += 1
            trainer.chunk.say(
                f"not enough device memory for {room.places} adapters in training on a device: going on with "
                f"{room_of(trainer, lanes).places}"
            )
        else:
            return


def begin_each(
    lm: LanguageModel,
    edits: Sequence[Sequence[batching.Tokens]],
    trainer: Trainer,
    *,
    seed: int | Sequence[int],
    settings: Sequence[Settings | None] | None = None,
    numbers: Mapping[str, float | Sequence[float]] | None = None,
    horizon: Sequence[int] | None = None,
) -> tuple[Lessons, HParams, Callable[[int], Adapter]]:
    """What E adapters are trained on and with, and each before its first step; arguments as for `train_each`."""
    config = trainer.config
    lessons, own = lessons_of(edits, trainer, seed=seed, settings=settings)
    seeds = np.broadcast_to(np.asarray(seed, np.int64), len(edits)).tolist()
    if config.initialisation == "per_edit":  # one that depends on what an edit says, and not on its neighbours
        seeds = [fingerprint(one, sequences) for one, sequences in zip(seeds, edits, strict=True)]
    hparams = HParams(
        learning_rate=np.asarray([chosen.learning_rate for chosen in own], np.float32),
        num_steps=np.asarray(horizon or [len(order) for order in lessons.orders], np.int32),
        alpha=np.asarray([chosen.alpha for chosen in own], np.float32),
        rank=np.asarray([chosen.rank for chosen in own], np.int32),
        seed=np.asarray(seeds, np.int32),
        numbers={name: np.resize(np.asarray(value, np.float32), len(own)) for name, value in (numbers or {}).items()},
    )

    def fresh(e: int) -> Adapter:
        one = jax.tree.map(lambda leaf: leaf[e : e + 1], hparams)
        adapter = lora.take(init_adapters(lm.params["blocks"], one, config.projections, config.rank), 0)
        return _only(adapter, own[e].projections)

    return lessons, hparams, fresh


def train(
    lm: LanguageModel, edits: Sequence[Sequence[batching.Tokens]], trainer: Trainer, **options: Any
) -> tuple[Adapter, list[Float[np.ndarray, "S"]]]:
    """All of `train_each` (which has the options): E adapters on the host, and each one's losses."""
    trained = {e: (adapter, losses) for e, adapter, losses in train_each(lm, edits, trainer, **options)}
    if lm.hosts is not None:  # of one that all trained, everybody has the first's
        trained = {e: own for part in reversed(lm.hosts.gather(trained)) for e, own in part.items()}
    adapters, losses = zip(*(trained[e] for e in range(len(edits))), strict=True)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *adapters), list(losses)


def sharing(lm: LanguageModel, adapters: int) -> Hosts | None:
    """The processes that train so many adapters together. A single one is trained by each of them, the same way."""
    return lm.hosts if adapters > 1 else None


def lessons_of(
    edits: Sequence[Sequence[batching.Tokens]],
    trainer: Trainer,
    *,
    seed: int | Sequence[int],
    settings: Sequence[Settings | None] | None = None,
) -> tuple[Lessons, list[FineTuning]]:
    """What E adapters are trained on, in their orders, and how each is trained."""
    config, shapes = trainer.config, trainer.shapes
    own = own_settings(config, settings or [None] * len(edits))
    batch_size = min(config.batch_size, shapes.capacity)
    for e, sequences in enumerate(edits):
        if not 1 <= own[e].epochs <= config.epochs:
            raise ValueError(f"self-edit {e} asks for {own[e].epochs} epochs; there is room for 1 to {config.epochs}")
        if len(sequences) > shapes.capacity:
            raise ValueError(
                f"self-edit {e} has {len(sequences)} training sequences; there is room for {shapes.capacity}"
            )
        longest = max((len(s.ids) for s in sequences), default=0)
        if longest > shapes.widths[-1]:
            raise ValueError(
                f"self-edit {e}: a training sequence of {longest} tokens; the widest step has {shapes.widths[-1]}"
            )
    seeds = np.broadcast_to(np.asarray(seed, np.int64), len(edits)).tolist()
    orders = [
        batching.order(len(sequences), epochs=chosen.epochs, batch_size=batch_size, seed=one, rows=trainer.loss.rows)
        for sequences, chosen, one in zip(edits, own, seeds, strict=True)
    ]
    return Lessons(edits, orders), own


def room_of(trainer: Trainer, lanes: int) -> Room:
    """What each lane trains at a time."""
    less = 2**trainer.chunk.halved
    places, tokens = math.ceil((trainer.compute.chunk or 1) / lanes), trainer.compute.tick_tokens or TICK_TOKENS
    return Room(max(1, places // less), max(1, tokens // less))


def widths_for(parameters: int, lessons: Lessons, trainer: Trainer, lanes: int) -> tuple[int, ...]:
    """Those of the run's widths that these lessons are worth compiling for, of a model of so many parameters."""
    price = COMPILING[0 if jax.default_backend() == "cpu" else 1] / (4 * parameters) * lanes
    lengths = np.concatenate([np.zeros(0, np.int64), *lessons.longest()])
    return schedule.choose_widths(lengths[lengths > 0], trainer.shapes.widths, price=price)


def ticks_of(parameters: int, lessons: Lessons, trainer: Trainer, lanes: int) -> list[list[Tick]]:
    """Each lane's ticks, as `train_each` will take them: to be shown, or counted."""
    widths, room = widths_for(parameters, lessons, trainer, lanes), room_of(trainer, lanes)
    longest, batch_size = lessons.longest(), lessons.batch_size
    return schedule.plan(longest, widths=widths, room=room, devices=lanes, batch_size=batch_size)[1]


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


def _only(adapter: Adapter, projections: Sequence[str]) -> Adapter:
    """A fresh adapter with zeros in all projections but these.

    With A and B both zero so is the gradient of either, exactly: they stay so, as columns past the rank do.
    """
    if set(projections) == set(adapter.a):
        return adapter
    return adapter.replace(a={name: w if name in projections else jnp.zeros_like(w) for name, w in adapter.a.items()})


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


def fingerprint(seed: int, sequences: Sequence[batching.Tokens]) -> int:
    """31 bits of a seed and of what is trained on."""
    words = np.fromiter((i for s in sequences for i in (len(s.ids), *s.ids)), np.uint32)
    return int(np.random.default_rng([seed, *words]).integers(2**31))
