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
from decimal import Decimal
from string import Template
from typing import Any, Literal, NamedTuple, get_args

import msgspec

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
_STRATEGIES: dict[str, Strategy] = {
    "train_using_all_tokens": "all_tokens",
    "train_using_output_tokens": "output_tokens",
}
_STRING_OR_BRACE = re.compile(r'"(?:[^"\\]|\\.?)*+"?|[{}]', re.DOTALL)  # a string may lack its end
_DIGITS = 18  # of an integer; what has more is beyond every bound, and Python refuses to read one of 4,301


class _Generation(msgspec.Struct, forbid_unknown_fields=True, rename=lambda group: f"use_{group}_augmentations"):
    basic: bool
    size: bool
    chain: bool
    repeat: bool


class _Training(msgspec.Struct, forbid_unknown_fields=True, rename={"epochs": "num_train_epochs"}):
    strategy: str
    learning_rate: float
    epochs: int


class _SelfEdit(msgspec.Struct, forbid_unknown_fields=True):
    data_generation: _Generation
    training: _Training


def to_json(choice: Choice) -> str:
    """The choice in its canonical form: one line, keys in the order of the schema, the learning rate as `1.5e-4`."""
    groups = {name: str(getattr(choice, name)).lower() for name in _Generation.__struct_fields__}
    strategy = next(name for name, strategy in _STRATEGIES.items() if strategy == choice.strategy)
    rate = _scientific(choice.learning_rate)
    return _CANONICAL.substitute(groups, strategy=strategy, learning_rate=rate, epochs=choice.epochs)


def parse_choice(text: str, bounds: Bounds) -> Choice | Problem:
    """What `text` chooses, or why it chooses nothing. Never raises, whatever the text.

    The first `{...}` is read; prose and a Markdown fence around it are ignored. The keys are exactly those of the
    schema and the types exact: no `"true"`, no `2.0` epochs. Of several problems the first in the text is named. Steps
    are not known here, so not checked.
    """
    begin = text.find("{")
    if begin < 0:
        return "no JSON object"
    if not _closes(text[begin:]):
        return "unfinished JSON object"
    try:
        value, _ = _DECODER.raw_decode(text, begin)
        written = msgspec.convert(value, _SelfEdit)
    except json.JSONDecodeError:
        return "not JSON"
    except RecursionError:
        return "nested too deeply"
    except _Refused as error:
        return error.problem
    except UnicodeEncodeError:  # half a surrogate pair
        return "unknown key"
    except msgspec.ValidationError as error:
        return (
            "unknown key"
            if "unknown field" in str(error)
            else "missing key"
            if "missing" in str(error)
            else "wrong type"
        )
    training = written.training
    if training.strategy not in _STRATEGIES:
        return "unknown strategy"
    if not bounds.learning_rate[0] <= training.learning_rate <= bounds.learning_rate[1]:
        return "learning rate out of bounds"
    if not bounds.epochs[0] <= training.epochs <= bounds.epochs[1]:
        return "epochs out of bounds"
    groups = msgspec.structs.asdict(written.data_generation)
    return Choice(**groups, **msgspec.structs.asdict(training) | {"strategy": _STRATEGIES[training.strategy]})


def pattern(bounds: Bounds) -> str:
    """A regular expression of canonical texts: every full match parses within `bounds`, and is its own `to_json`.

    Of the learning rates it holds those of one or two significant digits. Plain enough for Python's `re` and for
    automata: groups and alternatives.

    Raises:
      ValueError: no such learning rate is within the bounds.
    """
    low, high = bounds.learning_rate
    exponents = range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 1)
    rates = [rate for e in exponents for digits in range(10, 100) if low <= (rate := float(f"{digits}e{e}")) <= high]
    if not rates:
        raise ValueError(
            f"no learning rate of one or two significant digits lies between {low} and {high}; widen the bounds"
        )
    mantissas: dict[str, list[str]] = {}  # by exponent: one ending for many numbers keeps the automaton small
    for rate in rates:
        mantissa, exponent = _scientific(rate).split("e")
        mantissas.setdefault(exponent, []).append(mantissa.replace(".", "[.]"))
    alternatives = "|".join(f"({'|'.join(many)})e{exponent}" for exponent, many in mantissas.items())
    escaped = Template(re.sub(r"[{}]", r"\\\g<0>", _CANONICAL.template))
    return escaped.substitute(
        dict.fromkeys(_Generation.__struct_fields__, "(true|false)"),
        strategy=f"({'|'.join(_STRATEGIES)})",
        learning_rate=f"({alternatives})",
        epochs=f"({'|'.join(map(str, range(bounds.epochs[0], bounds.epochs[1] + 1)))})",
    )


def _scientific(number: float) -> str:
    """The shortest digits that read back as this float, with one before the point: `1e-4`, `2.5e-5`."""
    _, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(exponent, int)  # the others are of infinities and NaN
    rest = "".join(map(str, digits[1:]))
    return f"{digits[0]}{'.' if rest else ''}{rest}e{exponent + len(rest)}"


def _closes(text: str) -> bool:
    """Whether the brace with which `text` begins is closed; those within strings do not count."""
    depth = 0
    for found in _STRING_OR_BRACE.finditer(text):
        depth += (found[0] == "{") - (found[0] == "}")
        if not depth and found[0] == "}":
            return True
    return False


class _Refused(Exception):
    """What JSON's reader lets pass and is not to be read."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise _Refused("duplicate key")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise _Refused("not JSON")  # NaN and the infinities


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates,
    parse_int=lambda digits: int(digits[:_DIGITS]),  # JSON has no leading zeros: what is cut off was large, stays so
    parse_constant=_refuse,
)
