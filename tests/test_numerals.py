"""Numbers without digits: what is read, and of how many words."""

from __future__ import annotations

import pytest

from seal_jax.graders import numerals
from seal_jax.graders.numerals import Numeral


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("one hundred and five men", Numeral(105, 4)),
        ("nineteen eighty four was", Numeral(1984, 3, year=True)),
        ("two million and one", Numeral(2000001, 4)),
        ("two and a half years", Numeral(2.5, 4)),
        ("three quarters of it", Numeral(0.75, 2)),
        ("half a million", Numeral(0.5, 2)),  # the million is read next
        ("twenty first of may", Numeral(21, 2, ordinal=True)),
        ("four point five", Numeral(4.5, 3)),
        ("and five", None),
    ],
)
def test_a_number_in_words(text, found):
    assert numerals.in_words(text.split()) == found


def test_a_roman_number():
    assert [numerals.roman(text) for text in ("I", "XIV", "XXXIX", "CD", "IIII", "five")] == [
        1,
        14,
        39,
        None,
        None,
        None,
    ]


def test_a_number_in_chinese_characters():
    assert numerals.in_digits("三十五人 5万 二〇一五年") == "35人 50000 2015年"
