"""Constrained decoding: only tokens with which the text can still become a match of a regular expression.

outlines-core turns the expression and the vocabulary into an automaton over tokens (Willard and Louf, 2023, "Efficient
guided generation", arXiv 2307.09702); here it becomes one table of states by tokens, so that on the device a step is
two look-ups a row. A row's limit of tokens is kept to as well: a token from which the end is too far is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Bool, Int

ENDED = 0  # the state after a stop token
FORBIDDEN = -1


class Constraint(NamedTuple):
    """An automaton over tokens. Its states are numbered by how few tokens lead to the end, the nearest first."""

    next_state: Int[Array, "states V"]  # `FORBIDDEN` where the token may not be written; stop tokens lead to `ENDED`
    start: Int[Array, ""]
    reach: Int[Array, "D"]  # at d, how many states are at most d tokens from the end, the stop token among these

    def allowed(self, state: Int[Array, "..."], left: Int[Array, "..."]) -> Bool[Array, "... V"]:
        """The tokens that rows in `state` may write next, of the `left` tokens that each may still write.

        Where the end is not too far already (`shortest`), no token is allowed that would put it too far.
        """
        furthest = self.reach.shape[0] - 1
        near, soon = (self.reach[jnp.clip(n, 0, furthest)] for n in (left, left - 1))
        soon = jnp.where(state < near, soon, self.next_state.shape[0])
        following = self.next_state[state]
        return (following >= 0) & (following < soon[..., None])

    def after(self, state: Int[Array, "..."], token: Int[Array, "..."]) -> Int[Array, "..."]:
        """The states once each row has written an allowed token."""
        return self.next_state[state, token].astype(state.dtype)

    def shortest(self) -> int:
        """The fewest tokens of a match, the stop token included: with a lower limit no text is whole."""
        return int(jnp.searchsorted(self.reach, self.start, side="right"))


def compile_pattern(
    pattern: str, vocabulary: Sequence[bytes | None], stop: Sequence[int], *, vocab_size: int | None = None
) -> Constraint:
    """The constraint that a text matches `pattern` as a whole before it ends.

    Args:
      pattern: a regular expression as Rust's `regex` reads it, without anchors, word boundaries and look-around.
      vocabulary: [V], what each token adds to a text; None for tokens never to be written (`tokenizer.vocabulary`).
      stop: ids of the tokens that end a text. They are allowed where the text is a match, and nowhere else.
      vocab_size: of the model, where it has more logits than the tokenizer has tokens; the others are forbidden.

    Raises:
      ValueError: no automaton can be made of the pattern; no stop token; no match can be spelled with these tokens.
    """
    size = len(vocabulary) if vocab_size is None else vocab_size
    if not stop or not all(0 <= token < size for token in stop):
        raise ValueError(
            f"the stop tokens are {list(stop)}; expected at least one, all in 0..{size - 1}: without one a text that "
            "matches could not end"
        )
    edges, start, finals = _automaton(pattern, vocabulary[:size], stop)

    # Numbered by the distance to the end, which falls by at most one a token.
    states = max(start, int(edges[:, ::2].max(initial=0)), *finals, ENDED) + 1
    steps = np.unique(edges[:, ::2], axis=0)
    distance = np.full(states, np.inf)
    distance[list(finals)] = 1
    while True:
        closer = distance.copy()
        np.minimum.at(closer, steps[:, 0], distance[steps[:, 1]] + 1)
        if (closer == distance).all():
            break
        distance = closer
    distance[ENDED] = 0
    if not np.isfinite(distance[start]):
        raise ValueError(f"no text that matches {_shown(pattern)} can be spelled with the tokens of this vocabulary")
    order = np.argsort(distance, kind="stable")[: np.isfinite(distance).sum()]
    number = np.full(states, FORBIDDEN)
    number[order] = np.arange(len(order))

    small = len(order) <= np.iinfo(np.int16).max
    table = np.full((len(order), size), FORBIDDEN, np.int16 if small else np.int32)
    edges = edges[number[edges[:, 0]] != FORBIDDEN]
    table[number[edges[:, 0]], edges[:, 1]] = number[edges[:, 2]]
    table[number[list(finals)][:, None], list(stop)] = ENDED
    table[ENDED] = ENDED  # whatever a row that has ended would write
    reach = np.searchsorted(distance[order], np.arange(distance[order][-1] + 1), side="right")
    return Constraint(jnp.asarray(table), jnp.asarray(number[start], jnp.int32), jnp.asarray(reach, jnp.int32))


def _automaton(
    pattern: str, vocabulary: Sequence[bytes | None], stop: Sequence[int]
) -> tuple[np.ndarray, int, list[int]]:
    """Edges [n, 3] (state, token, next state), the first state and those in which the text is a match; from 1 on."""
    try:
        import outlines_core  # where it is used: the sampler runs without it
    except ImportError:
        raise ValueError(
            "constrained decoding needs outlines-core, which is not installed: pip install 'seal_jax[arc]'"
        ) from None

    # The library reads as Rust's `regex` does: the first alternative that matches wins, so that "a|ab" would never let
    # "ab" be written. A match that has to end with a mark is a whole one: a token of our own spells that mark.
    mark = len(vocabulary)
    ids = {_END.encode(): [mark]}
    for token, spelled in enumerate(vocabulary):
        if spelled and token not in stop:  # one that adds nothing could be written for ever
            ids.setdefault(spelled, []).append(token)
    try:
        index = outlines_core.Index(f"(?:{pattern}){_END}", outlines_core.Vocabulary(stop[0], ids))
    except ValueError as error:
        raise ValueError(f"no automaton can be made of the pattern {_shown(pattern)}: {error}") from error
    transitions, whole = index.get_transitions(), index.get_final_states()
    numbers = {state: n for n, state in enumerate(sorted({*transitions, *whole}), start=1)}
    edges = [
        (numbers[state], token, numbers[following])
        for state, row in transitions.items()
        for token, following in row.items()
        if token not in (mark, stop[0])
    ]
    finals = [numbers[state] for state, row in transitions.items() if row.get(mark) in whole]
    return np.array(edges, int).reshape(-1, 3), numbers[index.get_initial_state()], finals


_END = "\U0010ffff"  # Unicode keeps it free of any character


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")
