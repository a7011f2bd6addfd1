"""A judge's replies survive kills, and processes share them."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import threading

import pytest

from seal_jax.graders.replies import Replies, Usage, reply_key


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
    kept = json.loads(first.path.read_text())
    assert kept == {"key": "k", "reply": "yes\nor no", "check": kept["check"], "tokens_in": 3}


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


def test_only_what_is_new_is_asked(tmp_path):
    asked: list[list[str]] = []

    def send(new, keep):
        asked.append(list(new))
        for prompt in new:
            if prompt != "?":
                keep(prompt, prompt.upper(), tokens_in=len(prompt))

    usage = Usage()
    replies = Replies(tmp_path / "judge.jsonl")
    assert replies.ask(["ccc", "?", "bb", "ccc"], send, usage, model="m") == ["CCC", None, "BB", "CCC"]
    assert asked == [["ccc", "?", "bb"]]
    assert replies.ask(["bb", "?", "dddd"], send, usage, model="m") == ["BB", None, "DDDD"]
    assert asked[1:] == [["?", "dddd"]]  # what failed, and what is new
    assert usage.cached == 1
    replies.ask(["bb"], send, usage, model="another")
    assert asked[2:] == [["bb"]]
    assert replies.ask(["bb"], send, usage, model="another") == ["BB"] and len(asked) == 3
    kept = json.loads(replies.path.read_text().splitlines()[0])
    said = {"key": kept["key"], "reply": "CCC", "prompt": "ccc", "model": "m", "tokens_in": 3}
    assert kept == {**said, "check": kept["check"]}


def test_a_reply_that_was_altered_is_not_taken(tmp_path):
    replies = Replies(tmp_path / "judge.jsonl")
    replies.add("a", "yes")
    replies.add("b", "yes, it is right")
    whole = replies.path.read_bytes()
    for before, after in ((b"yes, it", b"yes- it"), (b'"key": "b"', b'"key": "c"')):
        replies.path.write_bytes(whole.replace(before, after))
        with pytest.raises(ValueError, match=r"judge\.jsonl: line 2 is no judge's reply, .*, or is damaged"):
            Replies(replies.path)
    replies.path.write_bytes(b"".join(json.dumps({"key": k, "reply": "yes"}).encode() + b"\n" for k in "ab"))
    assert Replies(replies.path).get("b") == "yes"  # of a version that wrote no checksum


def test_a_full_disk_says_what_to_do(tmp_path):
    replies = Replies(tmp_path / "judge.jsonl")
    replies.add("a", "yes")
    replies._file.close()
    replies._file = Full(replies.path, "ab+")
    with pytest.raises(OSError, match=r"replies so far are kept: make room.*judge\.jsonl"):
        replies.add("b", "no")
    replies._file.close()
    again = Replies(replies.path)
    again.add("c", "no")
    assert [json.loads(line)["key"] for line in again.path.read_text().splitlines()] == ["a", "c"]


class Full(io.FileIO):
    """A file on a disk that is full after three more bytes."""

    left = 3

    def write(self, data) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        written, self.left = super().write(data[: self.left]), 0
        return written
