"""A self-edit for an ARC task: a JSON object that chooses the augmentations and the training (paper section 3.3).

    {"data_generation": {"use_basic_augmentations": true, "use_size_augmentations": false,
                         "use_chain_augmentations": true, "use_repeat_augmentations": true},
     "training": {"strategy": "train_using_output_tokens", "learning_rate": 1e-4, "num_train_epochs": 2}}

Whatever text a model writes, `parse_choice` answers with a `Choice` within the bounds or with the reason why not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from string import Template
from typing import Any, Literal, NamedTuple, get_args

Strategy = Literal["all_tokens", "output_tokens"]


class Choice(NamedTuple):
    """What a self-edit chooses: groups of augmentations, the tokens with a loss, and the hyper-parameters."""

    basic: bool
    size: bool
    chain: bool
    repeat: bool
    strategy: Strategy
    learning_rate: float
    epochs: int


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a self-edit may choose, ends included. The paper's code bounds the steps alone."""

    learning_rate: tuple[float, float] = (1e-6, 1e-2)  # ours: a hundred times less and more than 1e-4
    epochs: tuple[int, int] = (1, 50)  # ours
    steps: int = 375  # optimiser steps of one inner loop, paper's code; counted where the examples are known

    def __post_init__(self) -> None:
        low, high = self.learning_rate
        if not 0 < low <= high < math.inf:
            raise ValueError(f"the bounds of the learning rate are {low} and {high}; expected 0 < lowest <= highest")
        if not 1 <= self.epochs[0] <= self.epochs[1]:
            raise ValueError(f"the bounds of the epochs are {self.epochs}; expected 1 <= fewest <= most")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1")


Problem = Literal[
    "no JSON object",
    "unfinished JSON object",
    "not JSON",
    "nested too deeply",
    "duplicate key",
    "unknown key",
    "missing key",
    "wrong type",
    "unknown strategy",
    "learning rate out of bounds",
    "epochs out of bounds",
]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)
"""Every reason that `parse_choice` gives: few and fixed, to be counted."""

_CANONICAL = Template(
    '{"data_generation": {"use_basic_augmentations": $basic, "use_size_augmentations": $size, '
    '"use_chain_augmentations": $chain, "use_repeat_augmentations": $repeat}, '
    '"training": {"strategy": "$strategy", "learning_rate": $learning_rate, "num_train_epochs": $epochs}}'
)
_GROUPS = {f"use_{name}_augmentations": name for name in ("basic", "size", "chain", "repeat")}
_STRATEGIES: dict[str, Strategy] = {
    "train_using_all_tokens": "all_tokens",
    "train_using_output_tokens": "output_tokens",
}
_TRAINING = ("strategy", "learning_rate", "num_train_epochs")
_DEPTH = 32  # brackets within brackets that are read; the form has 2, and Python's reader ends at about 1,000
_DIGITS = 18  # of an integer; what has more is beyond every bound, and Python refuses to read one of 4,301


def to_json(choice: Choice) -> str:
    """The choice in its canonical form: one line, keys in the order of the schema, the learning rate as `1.5e-4`."""
    return _CANONICAL.substitute(
        {name: "true" if getattr(choice, name) else "false" for name in _GROUPS.values()},
        strategy=next(name for name, strategy in _STRATEGIES.items() if strategy == choice.strategy),
        learning_rate=_scientific(choice.learning_rate),
        epochs=choice.epochs,
    )


def parse_choice(text: str, bounds: Bounds) -> Choice | Problem:
    """What `text` chooses, or why it chooses nothing. Never raises, whatever the text.

    The first balanced `{...}` is read; prose and a Markdown fence around it are no harm. The keys are exactly those of
    the schema and the types exact: no `"true"`, no `2.0` epochs. Steps are not known here, so not checked.
    """
    found = _first_object(text)
    if isinstance(found, str):
        return found
    begin, end = found
    try:
        whole = json.loads(
            text[begin:end], object_pairs_hook=_without_duplicates, parse_int=_integer, parse_constant=_refuse
        )
    except _DuplicateKey:
        return "duplicate key"
    except ValueError:
        return "not JSON"
    return _choice(whole, bounds)


def pattern(bounds: Bounds) -> str:
    """A regular expression of canonical texts: every full match parses within `bounds`, and is its own `to_json`.

    Of the learning rates it holds those of one or two significant digits. Plain enough for Python's `re` and for
    automata: groups, alternatives, classes, `?`.

    Raises:
      ValueError: no such learning rate is within the bounds.
    """
    escaped = Template(re.sub(r"[{}]", r"\\\g<0>", _CANONICAL.template))
    return escaped.substitute(
        dict.fromkeys(_GROUPS.values(), "(true|false)"),
        strategy=f"({'|'.join(_STRATEGIES)})",
        learning_rate=_learning_rates(*bounds.learning_rate),
        epochs=_integers(*bounds.epochs),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _choice(whole: dict[str, Any], bounds: Bounds) -> Choice | Problem:
    parts: list[tuple[dict[str, Any], tuple[str, ...]]] = [(whole, ("data_generation", "training"))]
    if all(isinstance(whole.get(key), dict) for key in parts[0][1]):
        parts += [(whole["data_generation"], tuple(_GROUPS)), (whole["training"], _TRAINING)]
    if any(set(part) - set(keys) for part, keys in parts):
        return "unknown key"
    if any(set(keys) - set(part) for part, keys in parts):
        return "missing key"
    if len(parts) == 1:
        return "wrong type"
    groups, (strategy, learning_rate, epochs) = whole["data_generation"], (whole["training"][key] for key in _TRAINING)
    right = (
        all(isinstance(on, bool) for on in groups.values())
        and isinstance(strategy, str)
        and isinstance(learning_rate, int | float)
        and isinstance(epochs, int)
        and not isinstance(learning_rate, bool)
        and not isinstance(epochs, bool)
    )
    if not right:
        return "wrong type"
    if strategy not in _STRATEGIES:
        return "unknown strategy"
    if not bounds.learning_rate[0] <= learning_rate <= bounds.learning_rate[1]:
        return "learning rate out of bounds"
    if not bounds.epochs[0] <= epochs <= bounds.epochs[1]:
        return "epochs out of bounds"
    return Choice(
        **{_GROUPS[key]: on for key, on in groups.items()},
        strategy=_STRATEGIES[strategy],
        learning_rate=float(learning_rate),
        epochs=epochs,
    )


_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.?)*+"?|[\[\]{}]', re.DOTALL)  # a string may lack its end


def _first_object(text: str) -> tuple[int, int] | Problem:
    """Where the first balanced `{...}` begins and ends; brackets within strings do not count."""
    begin = text.find("{")
    if begin < 0:
        return "no JSON object"
    braces = depth = 0
    for found in _STRING_OR_BRACKET.finditer(text, begin):
        mark = found[0]
        depth += (mark in "{[") - (mark in "}]")
        braces += (mark == "{") - (mark == "}")
        if not braces:
            return begin, found.end()
        if depth > _DEPTH:
            return "nested too deeply"
    return "unfinished JSON object"


class _DuplicateKey(ValueError):
    """One object names a key twice: no saying which is meant."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise _DuplicateKey
    return dict(pairs)


def _integer(digits: str) -> int:
    return int(digits[:_DIGITS])  # JSON has no leading zeros, so what is cut off was large and stays so


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _scientific(number: float) -> str:
    """The shortest digits that read back as this float, with one before the point: `1e-4`, `2.5e-5`."""
    _, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(exponent, int)  # the others are of infinities and NaN
    rest = "".join(map(str, digits[1:]))
    return f"{digits[0]}{'.' if rest else ''}{rest}e{exponent + len(rest)}"


def _learning_rates(low: float, high: float) -> str:
    """Numbers of one or two significant digits from `low` to `high`, as `_scientific` writes them."""
    exponents: dict[str, list[str]] = {}  # of each pattern of mantissas, so that equal ones are written once
    for exponent in range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2):
        tenths: dict[str, list[str]] = {}  # of each set of second digits, the first digits that go with it
        for first in "123456789":
            second = "".join(s for s in "0123456789" if low <= float(f"{first}.{s}e{exponent}") <= high)
            if second:
                tenths.setdefault(second, []).append(first)
        if tenths:
            mantissas = "|".join(_class(firsts) + _second(second) for second, firsts in tenths.items())
            exponents.setdefault(mantissas, []).append(str(exponent))
    if not exponents:
        raise ValueError(
            f"no learning rate of one or two significant digits lies between {low} and {high}; widen the bounds"
        )
    return _either(f"{_either(mantissas)}e{_either('|'.join(es))}" for mantissas, es in exponents.items())


def _second(digits: str) -> str:
    """The second digit of a mantissa, out of these; 0 is not written."""
    others = digits.lstrip("0")
    if others == digits:
        return rf"\.{_class(others)}"
    return rf"(\.{_class(others)})?" if others else ""


def _integers(low: int, high: int) -> str:
    """The whole numbers from `low` to `high`."""
    endings: dict[str, list[str]] = {}  # of each set of last digits, the tens that go with it
    for tens in range(low // 10, high // 10 + 1):
        last = "".join(d for d in "0123456789" if low <= 10 * tens + int(d) <= high)
        endings.setdefault(last, []).append(str(tens) if tens else "")
    return _either("|".join(tens + _class(last) for last, many in endings.items() for tens in many))


def _class(digits: Iterable[str]) -> str:
    """Any one of these digits, ascending."""
    joined = "".join(digits)
    if len(joined) < 2:
        return joined
    return f"[{joined[0]}-{joined[-1]}]" if joined in "0123456789" else f"[{joined}]"


def _either(alternatives: str | Iterable[str]) -> str:
    """Alternatives in a group, or the only one as it is."""
    text = alternatives if isinstance(alternatives, str) else "|".join(alternatives)
    return f"({text})" if "|" in text else text
