"""Any text is a choice within the bounds or has a reason why not; what is written canonically is read back."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seal_jax.domains.arc.self_edits import PROBLEMS, Bounds, Choice, parse_choice, pattern, to_json

BOUNDS = Bounds()
CHOICE = Choice(True, False, True, False, "output_tokens", 1e-4, 2)
JSON = (
    '{"data_generation": {"use_basic_augmentations": true, "use_size_augmentations": false, '
    '"use_chain_augmentations": true, "use_repeat_augmentations": false}, '
    '"training": {"strategy": "train_using_output_tokens", "learning_rate": 1e-4, "num_train_epochs": 2}}'
)
NARROW = [
    Bounds(learning_rate=(3e-5, 2e-3), epochs=(3, 12)),
    Bounds(learning_rate=(1.45e-4, 1.62e-4), epochs=(7, 7)),
    Bounds(learning_rate=(9.9e-6, 1.05e-5), epochs=(9, 110)),
    Bounds(learning_rate=(0.5, 20), epochs=(1, 9)),
]


def without(text: str, new: str) -> str:
    """`JSON` with one part of it replaced, where it first occurs."""
    assert text in JSON
    return JSON.replace(text, new, 1)


# ---------------------------------------------------------------------------------------------------------------------
# What is read


def test_the_form_of_the_paper():
    assert parse_choice(JSON, BOUNDS) == CHOICE
    assert to_json(CHOICE) == JSON


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{JSON}\n```",
        f"Sure! Here it is:\n\n{JSON}\n\nIt uses [no] {{size}} augmentations.",
        json.dumps(json.loads(JSON), indent=4),
        json.dumps(dict(reversed(json.loads(JSON).items()))),
        JSON + JSON,
        without("1e-4", "0.0001"),
        without("1e-4", "1.0E-04"),
        without('"training"', r'"tr\u0061ining"'),
    ],
)
def test_layout_and_what_stands_around_it_do_not_matter(text):
    assert parse_choice(text, BOUNDS) == CHOICE


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON object"),
        ("I would use all augmentations.", "no JSON object"),
        ("[true, false]", "no JSON object"),
        (JSON[:-1], "unfinished JSON object"),
        (JSON[:40], "unfinished JSON object"),
        (without("false}", 'false, "}}}}'), "unfinished JSON object"),
        (without('"use_size', '"}}}}'), "unknown key"),
        ('{"a": "' + "\\", "unfinished JSON object"),
        (JSON.replace('"', "'"), "not JSON"),
        (without("true", "True"), "not JSON"),
        (without("2}}", "2,}}"), "not JSON"),
        (without("1e-4", "NaN"), "not JSON"),
        (without("1e-4", "Infinity"), "not JSON"),
        (without("1e-4", "-Infinity"), "not JSON"),
        (without("1e-4", "1e-4 // small"), "not JSON"),
        ("Use {this}: " + JSON, "not JSON"),  # the first object is meant
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        (without("true", "[" * 100_000 + "]" * 100_000), "nested too deeply"),
        (without("true", "true, " + '"use_basic_augmentations": true'), "duplicate key"),
        (without('"training"', '"data_generation": 1, "training"'), "duplicate key"),
        (without('"training"', '"learning"'), "unknown key"),
        (without("2}}", '2, "seed": 1}}'), "unknown key"),
        (without("true, ", r'true, "\ud800": 1, '), "unknown key"),
        (without("use_size", "use_sise"), "unknown key"),
        ("{}", "missing key"),
        (without(', "num_train_epochs": 2', ""), "missing key"),
        ('{"data_generation": {}}', "missing key"),
        ('{"data_generation": [], "training": {}}', "wrong type"),
        (without("true", '"true"'), "wrong type"),
        (without("true", "1"), "wrong type"),
        (without("true", "null"), "wrong type"),
        (without('"train_using_output_tokens"', "[]"), "wrong type"),
        (without("1e-4", '"1e-4"'), "wrong type"),
        (without("1e-4", "true"), "wrong type"),
        (without(": 2}", ": true}"), "wrong type"),
        (without(": 2}", ": 2.0}"), "wrong type"),
        (without("train_using_output_tokens", "output_tokens"), "unknown strategy"),
        (without("1e-4", "9.9e-7"), "learning rate out of bounds"),
        (without("1e-4", "0.0101"), "learning rate out of bounds"),
        (without("1e-4", "-1e-4"), "learning rate out of bounds"),
        (without("1e-4", "0"), "learning rate out of bounds"),
        (without("1e-4", "1e999"), "learning rate out of bounds"),
        (without("1e-4", "9" * 10_000), "learning rate out of bounds"),
        (without(": 2}", ": 0}"), "epochs out of bounds"),
        (without(": 2}", ": 51}"), "epochs out of bounds"),
        (without(": 2}", ": -2}"), "epochs out of bounds"),
        (without(": 2}", f": {'9' * 10_000}}}"), "epochs out of bounds"),
    ],
)
def test_each_problem_has_its_name(text, problem):
    assert parse_choice(text, BOUNDS) == problem
    assert problem in PROBLEMS


def test_the_ends_of_the_bounds_are_within():
    for bounds in (BOUNDS, *NARROW):
        for rate, epochs in zip(bounds.learning_rate, bounds.epochs, strict=True):
            choice = CHOICE._replace(learning_rate=float(rate), epochs=epochs)
            assert parse_choice(to_json(choice), bounds) == choice


# ---------------------------------------------------------------------------------------------------------------------
# Any text at all

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FRAGMENTS = st.lists(
    st.sampled_from(
        [*re.findall(r'"\w+"|true|false|1e-4|\d|[{}:,]', JSON)]
        + [
            "[",
            "]",
            '"',
            "\\",
            "\n",
            "```",
            "NaN",
            "-",
            "1e999",
            "0" * 30,
            "9" * 5000,
            "\ud800",
            "\0",
            "null",
            "{" * 99,
        ]
    ),
    max_size=60,
).map("".join)


@st.composite
def altered(draw) -> str:
    """`JSON` with a value replaced by any other, or a piece cut out, doubled or overwritten."""
    if draw(st.booleans()):
        whole = json.loads(JSON)
        part = draw(st.sampled_from(["data_generation", "training"]))
        whole[part][draw(st.sampled_from(list(whole[part])))] = draw(JSON_VALUES)
        return json.dumps(whole)
    begin, end = sorted(draw(st.tuples(*[st.integers(0, len(JSON))] * 2)))
    return JSON[:begin] + draw(st.sampled_from(["", JSON[begin:end] * 2]) | st.text(max_size=5)) + JSON[end:]


ANY_TEXT = (
    st.text(st.characters(exclude_categories=()))  # lone surrogates too
    | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
    | st.binary().map(lambda raw: "{" + raw.decode("latin-1") + "}")
    | JSON_VALUES.map(json.dumps)
    | FRAGMENTS
    | altered()
)


@settings(max_examples=1000, deadline=None)
@given(ANY_TEXT)
@example('{"\udcff": 1}')
def test_any_text_has_a_verdict(text):
    found = parse_choice(text, BOUNDS)
    if isinstance(found, str):
        assert found in PROBLEMS
        return
    low, high = BOUNDS.learning_rate
    assert [type(value) for value in found] == [bool, bool, bool, bool, str, float, int]
    assert low <= found.learning_rate <= high
    assert 1 <= found.epochs <= 50
    assert parse_choice(to_json(found), BOUNDS) == found


@given(
    st.builds(
        Choice,
        *[st.booleans()] * 4,
        st.sampled_from(["all_tokens", "output_tokens"]),
        st.floats(*BOUNDS.learning_rate),
        st.integers(*BOUNDS.epochs),
    )
)
def test_every_choice_is_read_back_as_it_was(choice):
    assert parse_choice(f"So: {to_json(choice)}.", BOUNDS) == choice


# ---------------------------------------------------------------------------------------------------------------------
# The pattern


@pytest.mark.parametrize("bounds", [BOUNDS, *NARROW])
def test_the_pattern_holds_what_is_within_the_bounds_and_nothing_else(bounds):
    expression = re.compile(pattern(bounds))
    low, high = bounds.learning_rate
    rates = [
        f"{a}{b}e{c}"
        for c, a, b in itertools.product(range(-8, 3), range(1, 10), ["", *map(".{}".format, range(1, 10))])
    ]
    for rate in rates:
        text = without("1e-4", rate).replace(": 2}", f": {bounds.epochs[0]}}}")
        assert bool(expression.fullmatch(text)) == (low <= float(rate) <= high), rate
    inside = next(rate for rate in rates if low <= float(rate) <= high)
    for epochs in range(200):
        text = without("1e-4", inside).replace(": 2}", f": {epochs}}}")
        assert bool(expression.fullmatch(text)) == (bounds.epochs[0] <= epochs <= bounds.epochs[1]), epochs


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_matches_the_pattern_parses_and_is_canonical(data):
    bounds = data.draw(st.sampled_from([BOUNDS, *NARROW]))
    text = data.draw(st.from_regex(pattern(bounds), fullmatch=True, alphabet=st.characters(codec="ascii")))
    choice = parse_choice(text, bounds)
    assert isinstance(choice, Choice), choice
    assert to_json(choice) == text


def test_a_pattern_without_a_learning_rate_is_refused():
    with pytest.raises(ValueError, match=r"no learning rate .* between 0\.000123 and 0\.000124; widen"):
        pattern(Bounds(learning_rate=(1.23e-4, 1.24e-4)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"learning_rate": (1e-2, 1e-6)}, r"learning rate are 0\.01 and 1e-06; expected 0 < lowest <= highest"),
        ({"learning_rate": (0.0, 1.0)}, "learning rate are 0"),
        ({"learning_rate": (1e-4, float("inf"))}, "and inf"),
        ({"epochs": (0, 5)}, r"epochs are \(0, 5\); expected 1 <= fewest <= most"),
        ({"epochs": (5, 4)}, r"epochs are \(5, 4\)"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
    ],
)
def test_bounds_that_hold_nothing_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Bounds(**wrong)
