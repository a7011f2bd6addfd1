"""A judge's replies survive kills, and processes share them."""

from __future__ import annotations

import fcntl
import json
import threading

import pytest

from seal_jax.graders.replies import Replies, Usage, remember, reply_key


def test_the_key_is_all_that_was_asked():
    assert reply_key(model="a", prompt="b") == reply_key(prompt="b", model="a")
    asked = [{"model": m, "prompt": p, "max_tokens": n} for m in "ab" for p in "ab" for n in (8, 9)]
    assert len({reply_key(**one) for one in asked}) == 8


def test_replies_are_there_after_a_restart(tmp_path):
    first = Replies(tmp_path / "new" / "judge.jsonl")
    first.add("k", "yes\nor no", tokens_in=3)
    assert "k" in first and first.get("k") == "yes\nor no"
    again = Replies(first.path)
    assert again.get("k") == "yes\nor no" and again.get("other") is None
    assert json.loads(first.path.read_text()) == {"key": "k", "reply": "yes\nor no", "tokens_in": 3}


def test_a_torn_last_line_is_left_out_then_cut(tmp_path):
    path = tmp_path / "judge.jsonl"
    Replies(path).add("k", "yes")
    with path.open("a") as file:
        file.write('{"key": "torn", "rep')
    replies = Replies(path)
    assert "k" in replies and "torn" not in replies
    replies.add("l", "no")
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["k", "l"]


def test_another_file_is_not_taken_for_replies(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "k", "reply": "yes"}\n{"question": "?"}\n')
    with pytest.raises(ValueError, match=r"answers\.jsonl: line 2 is no judge's reply"):
        Replies(path)
    assert len(path.read_text().splitlines()) == 2


def test_two_share_a_file(tmp_path):
    one, other = Replies(tmp_path / "judge.jsonl"), Replies(tmp_path / "judge.jsonl")
    one.add("a", "yes")
    other.add("b", "no")
    assert other.get("a") == "yes"
    one.refresh()
    assert one.get("b") == "no"
    other.add("a", "no")
    one.refresh()
    assert one.get("a") == other.get("a") == Replies(one.path).get("a") == "yes"  # the first counts


def test_writers_take_turns(tmp_path):
    replies = Replies(tmp_path / "judge.jsonl")
    with replies.path.open("ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b'{"key": "a", "rep')  # another process, in the middle of a line
        writer = threading.Thread(target=replies.add, args=("b", "no"), daemon=True)
        writer.start()
        writer.join(0.2)
        assert writer.is_alive() and "b" not in replies
        other.write(b'ly": "yes"}\n')
        fcntl.flock(other, fcntl.LOCK_UN)
        writer.join(20)
    assert [json.loads(line)["key"] for line in replies.path.read_text().splitlines()] == ["a", "b"]
    assert replies.get("a") == "yes"


def test_remember_asks_only_what_is_new_a_few_at_a_time(tmp_path):
    asked: list[list[str]] = []

    def ask(prompts):
        asked.append(list(prompts))
        return [None if prompt == "?" else prompt.upper() for prompt in prompts]

    usage = Usage()
    replies = Replies(tmp_path / "judge.jsonl")
    remembering = remember(ask, replies, usage, at_once=2, asked=lambda: {"model": "m"})
    assert remembering(["ccc", "?", "bb", "ccc"]) == ["CCC", None, "BB", "CCC"]
    assert asked == [["?", "bb"], ["ccc"]]  # like lengths together
    assert remembering(["bb", "?", "dddd"]) == ["BB", None, "DDDD"]
    assert asked[2:] == [["?", "dddd"]]  # what failed, and what is new
    assert (usage.calls, usage.cached, usage.failed) == (5, 1, 2)
    other = remember(ask, replies, usage, at_once=2, asked=lambda: {"model": "another"})
    other(["bb"])
    assert asked[3:] == [["bb"]]
