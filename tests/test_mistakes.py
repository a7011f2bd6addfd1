"""The page of typical mistakes is what they are answered with now: one sentence each, that names what was wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import mistakes

PAGE = Path(mistakes.__file__).with_suffix(".md").read_text(encoding="utf-8")


def test_there_are_thirty_and_all_are_on_the_page():
    rows = [line.partition(" | ") for line in mistakes.MISTAKES.strip().splitlines()]
    assert len(rows) >= 30
    shown = re.findall(r"^\| (.*?) \| `(.*?)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert [row[:2] for row in shown] == [(what, typed) for what, _, typed in rows]


@pytest.mark.slow
def test_the_page_is_current():
    made = mistakes.made()
    for mistake in made:
        assert mistake.status == 2, mistake
        assert "Traceback" not in mistake.answer
        assert 15 < len(mistake.answer) < 700, mistake
    assert mistakes.page(made) == PAGE, "out of date: python -m docs.mistakes > docs/mistakes.md"
