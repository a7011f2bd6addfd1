"""What counts as a right answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seal_jax.graders.agreement import agreement, passage_of, read_answers, split
from seal_jax.graders.lexical import grade_by_match, matches, normalise
from seal_jax.types import Query

DATA = Path(os.environ.get("SEAL_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
GRADED = DATA / "graded_answers_all.jsonl"


def test_normalise_is_squads():
    assert normalise("  The Cobbler's   Stair, (in) an U.S. town!\n") == "cobblers stair in us town"
    assert normalise("theatre anvil") == "theatre anvil"  # articles are words, not letters
    assert normalise("Cobbler’s – Stair") == "cobblers stair"  # punctuation beyond ASCII too


@pytest.mark.parametrize(
    ("question", "gold", "answer"),
    [
        # The words, however they stand
        ("What is it built of?", "red granite", "Red granite."),
        ("Who may touch it?", "the warden", "Only the Warden may touch it"),
        ("Who built it?", "Edmund and Silas Crote", "Silas Crote and his brother Edmund"),
        ("Who wrote it?", "Murray Gold and Ben Foster", "Murray Gold, Ben Foster"),
        ("Who lives there?", "tortoises", "a tortoise"),
        ("What was proposed?", "annexing nearby towns", "To annex nearby towns"),
        ("What is the algorithm called?", "polynomial time algorithm", "A polynomial-time algorithm"),
        ("What is a person from there called?", "Ann Arborite", "They are called Annarborites"),
        ("What explains it?", "the total amount of inequality", "inequality"),  # the other words are vague
        ("Which letter?", "A", "a"),  # an article is all there is
        ("Which sign?", "+", "+"),
        # Numbers, units and dates
        ("When was it first lit?", "1843", "It was first lit in 1843."),
        ("How many oars?", "twelve", "12"),
        ("How many steps?", "seven", "There are 7 steps"),
        ("How many towers?", "21", "twenty-one towers"),
        ("How many homes?", "38,000", "38000 homes"),
        ("How many people?", "1,500,000", "about 1.5 million"),
        ("How much better?", "a thousand times", "1000 times"),
        ("What share?", "Sixty percent", "60%"),
        ("How far?", "47 metres", "47 m"),
        ("When did it end?", "205 BC", "It ended in 205 BCE."),
        ("When was it found?", "16th century", "In 1566"),
        ("When did it reopen?", "the 1970s", "1978"),
        ("When did he visit?", "In July 2015", "2015"),
        ("Which century?", "the sixteenth century", "16th century"),
        # Names
        ("Who was sent?", "Major George Washington", "George Washington"),
        ("Who signed it?", "Leto Marsden Vane", "Vane"),
        ("What causes it?", "Borrelia burgdorferi", "Borrelia burgdorfi"),  # misspelt
        ("What was his name?", "Artëm Šolc", "Artem Solc"),
        ("Which ruler?", "King Harald", "Harald"),
        ("Who found it?", "Arthur H. Compton", "Arthur Compton"),
        ("Which country's cars?", "Japan", "Japanese cars"),
        ("Who sailed there?", "the Netherlands", "the Dutch"),
        ("Where was it invented?", "United Kingdom", "in Britain"),
        ("Who lends?", "the International Monetary Fund", "the IMF"),
        ("Who lends?", "IMF", "the International Monetary Fund"),
        # A choice
        ("Was it lit?", "no", "No, it never was."),
        ("How many?", "3,000 or 4,000", "4,000"),
        ("Which word?", '"right", "fair", or "true"', "fair"),
        ("What might it become?", "savanna or desert", "A desert."),
        ("Is it internal or external?", "external", "External"),
        # Long answers
        ("Why did it grow?", "solid economic growth", "For many reasons:\n\n1. **Solid economic growth**: it grew"),
        ("Where is it?", "Orrin", "Answer: Orrin"),
    ],
)
def test_right(question: str, gold: str, answer: str):
    assert matches(question, gold, answer)


@pytest.mark.parametrize(
    ("question", "gold", "answer"),
    [
        ("What is it built of?", "red granite", ""),
        ("What is it built of?", "red granite", " \n "),
        ("What is it built of?", "red granite", "..."),
        ("Which letter?", "A", ""),
        ("Which sign?", "+", "-"),
        ("What is it built of?", "red granite", "granite"),  # half of it
        ("Who signed it?", "Leto Marsden Vane", "Leto Marsden"),  # without the surname
        ("Who built it?", "Danes and Germans", "the Danes"),
        ("Which river?", "Ister", "Sister"),  # words, not letters
        ("What did they say?", "two two", "two"),  # each occurrence counts once
        ("What is it made of?", "glass", "glas"),
        ("What is it built of?", "red granite", "That is a secret.\nred granite"),  # the first line is the answer
        # Another number
        ("How many?", "42", "142"),
        ("What share?", "77%", "an increase of 40%"),
        ("How many people?", "1.5 million", "1.5 billion people"),
        ("When did it end?", "205 BC", "in 202 BC"),
        ("When was it found?", "16th century", "In 1666"),
        ("When was it first lit?", "1843", "in the 1840s"),  # less exact than the gold answer
        ("When was it added?", "In November 2008", "in July 2008"),
        ("How many wells?", "12 wells in Orrin", "wells in Orrin"),
        ("Was it lit?", "no", "Yes"),
        ("Was it lit?", "yes", "No"),
        # The question again
        ("Which dynasty did he found, and who was its first king?", "King Artaxias", "The first king of the dynasty."),
        ("Which generators use prime numbers?", "pseudorandom number generators", "Prime number generators"),
        # Denied
        ("When was it first lit?", "1843", "It was not in 1843."),
        ("What spread it?", "bad air", "It was never bad air"),
    ],
)
def test_wrong(question: str, gold: str, answer: str):
    assert not matches(question, gold, answer)


def test_a_word_of_the_question_weighs_less_than_a_new_one():
    assert not matches("Which motors replaced steam?", "electric motors", "motors")
    assert matches("Which motors replaced steam?", "electric motors", "electric")


def test_naming_everything_is_not_an_answer():
    colours = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}umber" for i in range(100)]
    assert matches("Which colour?", colours[3], ", ".join(colours[:4]))
    assert not matches("Which colour?", colours[3], ", ".join(colours))
    assert not matches("Which colour?", colours[70], " ".join(colours))  # past the words that are read
    assert matches("Which colours?", ", ".join(colours[:30]), ", ".join(colours[:30]) + " and grey")


def test_a_long_gold_answer_can_be_right():
    gold = " ".join(f"{chr(97 + i // 26)}{chr(97 + i % 26)}word" for i in range(80))
    assert matches("", gold, "So: " + gold)
    assert not matches("", gold, " ".join(["filler"] * 140 + gold.split()))


def test_one_verdict_for_each_query_in_order():
    queries = [Query("q", "p", "violet"), Query("q", "p", "plum")]
    assert grade_by_match(queries, ["plum", "plum"]) == [False, True]
    assert grade_by_match([], []) == []
    with pytest.raises(ValueError, match="1 answers for 2 queries"):
        grade_by_match(queries, ["plum"])


@pytest.mark.parametrize(
    "text",
    [
        "'",
        "%",
        "²³",
        "١٢",
        "½",
        "ßßßß",
        "漢字",
        "3rd",
        "0",
        "million",
        "or",
        "T(n)",
        "(",
        "st",
        "1.5 century",
        "9" * 400,
    ],
)
def test_any_text_is_read(text: str):
    assert matches(text, text, text)
    assert not matches(text, "granite", text)
    assert not matches(text, text, "granite")


@pytest.mark.skipif(not GRADED.exists(), reason=f"needs {GRADED}; SEAL_DATA names its folder")
def test_agreement_with_the_recorded_judge():
    """The figures of docs/results.md, on passages the rule was not tuned on."""
    _, held_out = split(read_answers(GRADED))
    queries = [Query(row["question"], "", row["gold"]) for row in held_out]
    found = agreement(
        grade_by_match(queries, [row["answer"] for row in held_out]),
        [row["correct"] for row in held_out],
        [passage_of(row["question"]) for row in held_out],
    )
    assert found.n == 7228 and found.ungraded == 0
    assert found.kappa == pytest.approx(0.764, abs=0.0005)
    assert found.kappa_error == pytest.approx(0.024, abs=0.001)
    assert found.agreement == pytest.approx(0.883, abs=0.0005)
    assert found.precision == pytest.approx(0.874, abs=0.0005)
    assert found.recall == pytest.approx(0.865, abs=0.0005)
    assert found.called_right == pytest.approx(0.446, abs=0.0005)
