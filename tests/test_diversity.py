"""Figures of diversity by hand, and what they must be of texts that are all alike or all different."""

from __future__ import annotations

import pytest

from seal_jax.analysis.diversity import copied, distinct, figures, ngrams, overlap, sentences

PROMPT = "Write facts.\n\nPassage: A gate.\n1. The gate is blue.\n2. It was built in 1902.\n\nPassage: {}\nFacts:\n"


def test_words_are_compared_without_case_and_punctuation():
    assert ngrams("It's a Gate; a gate!", 2) == [("it's", "a"), ("a", "gate"), ("gate", "a"), ("a", "gate")]
    assert ngrams("one two", 3) == [] == ngrams("", 1)


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b c", "d e f"], 2, 1.0),
        (["a b c", "A b c."], 2, 0.5),
        (["a a a a"], 1, 0.25),
        (["a b c d e", "a b c d x"], 4, 0.75),
        (["a b", "c"], 4, None),
        ([], 1, None),
    ],
)
def test_distinct(texts, n, expected):
    assert distinct(texts, n) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b", "b a"], 1.0),
        (["a b", "c d"], 0.0),
        (["a b", "b c", "x"], 1 / 9),
        (["a", ""], 0.0),
        (["", ""], None),
        (["a"], None),
    ],
)
def test_overlap(texts, expected):
    assert overlap(texts) == (expected if expected is None else pytest.approx(expected))


def test_sentences_are_lines_and_what_ends_with_a_stop_without_numbering():
    text = "1. The gate is blue.\n\n- It was built in 1902. By whom? Dr. Perrin\n2. the GATE is blue"
    assert sentences(text) == {"the gate is blue", "it was built in 1902", "by whom", "dr", "perrin"}


def test_copies_of_the_example_are_counted_and_the_passage_is_no_example():
    prompts = [PROMPT.format(passage) for passage in ("The sea is deep.", "The hill is high.")]
    found = figures(
        [["1. The gate is blue.\n2. The sea is deep."], ["The hill is high.\nIt was built in 1902."]], prompts
    )
    assert found["copied"] == 0.5
    assert figures([["The gate is blue."]], prompts[:1])["copied"] is None  # one prompt: what is of its passage?
    assert figures([["The gate is blue."], [""]], ["sea", "hill"])["copied"] is None  # no example
    assert copied(["", " "], {"a"}) is None


def test_figures_by_hand():
    found = figures([["a b c", "A b c"], ["a b c"]], ["x", "y"])
    assert found == {
        "mean_words": 3.0,
        "distinct_1": 0.75, "distinct_2": 0.75, "distinct_4": None,
        "distinct_1_across": pytest.approx(1 / 3), "distinct_2_across": pytest.approx(1 / 3), "distinct_4_across": None,
        "similarity": 1.0,
        "copied": None,
    }  # fmt: skip
    nothing = figures([[""]], [""])
    assert nothing["mean_words"] == 0 and {value for name, value in nothing.items() if name != "mean_words"} == {None}
