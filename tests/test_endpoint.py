"""A judge elsewhere: whatever the service does, no reply is lost or paid for twice, and the key stays where it is."""

from __future__ import annotations

import email.utils
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seal_jax.graders.choose import Connection, Grader
from seal_jax.graders.endpoint import Endpoint
from seal_jax.graders.replies import Usage
from seal_jax.run.judges import make_judge
from seal_jax.types import Query
from tests import judge_server
from tests.judge_server import KEY, JudgeServer, cut, drop, hang, refuse, send

MISBEHAVIOUR = {
    "times out": hang,
    "too many requests": refuse(429, Retry_After="0.01"),
    "internal error": refuse(500),
    "bad gateway, in HTML": lambda request: request.send(502, b"<html>", Content_Type="text/html"),
    "garbage JSON": send(b'{"choices": [{"mess'),
    "a page": send(b"<html>log in</html>", "text/html"),
    "JSON, but no reply": send(b'{"detail": "queued"}'),
    "JSON, but a list": send(b"[]"),
    "empty body": send(b""),
    "empty reply": judge_server.say(""),
    "no text": judge_server.say(None),
    "cut mid-answer": cut,
    "cut before the answer": drop,
}


@pytest.fixture
def server(monkeypatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)  # seconds; doubled each time
    with JudgeServer() as running:
        yield running


class Service:
    """An endpoint on the test server, and what it said and counted."""

    def __init__(self, server: JudgeServer, folder: Path, **changes: Any):
        url, model = changes.pop("base_url", server.url), changes.pop("model", "judge-2026-01-01")
        settings = {"concurrency": 1, "timeout_s": 20, "attempts": 3, **changes}
        self.config = Grader("endpoint", model, base_url=url)
        self.connection = Connection(key_variable="JUDGE_KEY", **settings)
        self.cache, self.usage, self.said = folder / "judge.jsonl", Usage(), list[str]()
        self._endpoint = Endpoint(self.config, self.connection, self.cache, self.usage, self.said.append)

    def ask(self, *prompts: str) -> list[str | None]:
        return self._endpoint.ask(prompts, max_tokens=8)


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_what_fails_once_is_asked_again(server, tmp_path, what):
    server.misbehaviour = [MISBEHAVIOUR[what]]
    service = Service(server, tmp_path, timeout_s=0.3 if what == "times out" else 20)
    assert service.ask("one?") == ["no"]
    assert len(server.requests) == 2
    assert (service.usage.calls, service.usage.retries, service.usage.failed) == (2, 1, 0)
    assert sum(service.usage.failures.values()) == 1


def test_the_request_pins_the_model_and_draws_nothing(server, tmp_path):
    Service(server, tmp_path).ask("one?")
    asked = {name: server.bodies[0][name] for name in ("model", "temperature", "max_tokens")}
    assert asked == {"model": "judge-2026-01-01", "temperature": 0, "max_tokens": 8}
    assert server.keys == [f"Bearer {KEY}"]


def test_a_storm_loses_nothing_and_a_second_run_asks_nothing(server, tmp_path):
    storm = [value for name, value in MISBEHAVIOUR.items() if name != "times out"]
    server.misbehaviour = [*storm, hang]
    prompts = [f"prompt {i}" for i in range(20)]
    service = Service(server, tmp_path, concurrency=4, attempts=20, timeout_s=1)
    assert service.ask(*prompts) == ["no"] * 20
    assert len(server.requests) == 20 + len(storm) + 1 == service.usage.calls
    assert (service.usage.tokens_in, service.usage.tokens_out) == (2000, 40)

    again = Service(server, tmp_path)
    assert again.ask(*prompts) == ["no"] * 20
    assert len(server.requests) == service.usage.calls  # none new
    assert (again.usage.calls, again.usage.cached) == (0, 20)


def test_what_fails_every_time_has_no_reply_and_is_asked_again_next_time(server, tmp_path):
    server.misbehaviour = [refuse(500)] * 3
    service = Service(server, tmp_path, attempts=3)
    assert service.ask("one?", "two?") == [None, "no"]
    assert server.requests == ["one?"] * 3 + ["two?"]
    assert service.usage.failed == 1
    assert "1 of 2 prompts got no reply" in service.said[0] and "3 x 500" in service.said[0]

    assert Service(server, tmp_path).ask("one?", "two?") == ["no", "no"]
    assert server.requests[4:] == ["one?"]


def test_a_service_that_is_down_is_given_up(server, tmp_path):
    server.always = refuse(503)
    service = Service(server, tmp_path, attempts=2, give_up_after=3)
    assert service.ask(*map(str, range(50))) == [None] * 50
    assert service.usage.failed == 50
    assert 6 <= len(server.requests) <= 8  # three prompts twice, and what was under way
    assert "47 were not asked" in service.said[0]

    before = len(server.requests)
    service.ask("another", "and another", "and yet another")
    assert len(server.requests) - before <= 4  # it is still down: one prompt shows

    server.always = judge_server.reply
    assert service.ask(*map(str, range(50))) == ["no"] * 50


@pytest.mark.parametrize(
    ("behave", "expected"),
    [
        (refuse(401, "invalid_api_key", f"Incorrect API key provided: {KEY}"), "variable JUDGE_KEY"),
        (refuse(403, message=f"no access for {KEY}"), "variable JUDGE_KEY"),
        (refuse(400, message=f"unknown parameter ({KEY})"), r"400: .*unknown parameter \(\[key\]\)"),
        (refuse(404, "model_not_found", "The model does not exist"), "--grader.model"),
        (refuse(429, "insufficient_quota", "You exceeded your current quota"), "add credit"),
    ],
    ids=["401", "403", "400", "404", "no credit"],
)
def test_what_cannot_succeed_stops_at_once(server, tmp_path, behave, expected):
    server.always = behave
    service = Service(server, tmp_path, concurrency=2)
    with pytest.raises(ValueError, match=expected) as caught:
        service.ask(*map(str, range(30)))
    assert len(server.requests) <= 4  # those under way
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown
    assert caught.value.__cause__ is None and caught.value.__context__ is None  # the client's hold the request


def test_a_prompt_refused_for_itself_stops_no_other(server, tmp_path):
    server.misbehaviour = [refuse(400, "context_length_exceeded", "too long")]
    assert Service(server, tmp_path).ask("long", "short") == [None, "no"]
    assert server.requests == ["long", "short"]


@pytest.mark.parametrize(
    "refusal",
    [
        (400, {"error": {"message": "maximum context length is 2048 tokens", "type": "BadRequestError", "code": 400}}),
        (400, {"error": {"code": 400, "message": "exceeds the available context size", "type": "exceed_context_size"}}),
        (400, {"error": "Trying to keep the first 5000 tokens when context the overflows the context length"}),
        (400, {"object": "error", "message": "The input (9 tokens) is longer than the model's context", "code": 400}),
        (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 2048", "error_type": "validation"}),
        (400, {"error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}}),
        (413, {"detail": "no"}),
        (400, {"error": {"message": "The prompt triggered the content management policy", "code": None}}),
        (200, {"error": {"message": "The maximum context length is 8 tokens", "code": "bad_request"}}),
    ],
    ids=["vLLM", "llama.cpp", "LM Studio", "SGLang", "TGI", "Anthropic", "413", "Azure's filter", "as a success"],
)
def test_an_answer_that_is_too_long_for_the_judge_is_ungraded_alone(server, tmp_path, refusal):
    status, body = refusal
    server.misbehaviour = [lambda request: request.send(status, json.dumps(body).encode())]
    service = Service(server, tmp_path)
    assert service.ask("long", "short") == [None, "no"]
    assert server.requests == ["long", "short"]
    said = str(body.get("error", body))
    assert any(words in service.said[0] for words in said.split("'")) or status == 413  # the server's own reason


def test_a_refusal_after_a_reply_is_about_that_prompt(server, tmp_path):
    server.misbehaviour = [judge_server.reply, refuse(400, message="something odd about this text")]
    service = Service(server, tmp_path)
    assert service.ask("one?", "two?", "three?") == ["no", None, "no"]
    assert "something odd about this text" in service.said[0]


@pytest.mark.parametrize(
    "names", [{"max_completion_tokens", "temperature"}, {"max_completion_tokens"}, {"max_tokens"}, set()]
)
def test_what_a_service_takes_is_found_out_once(server, tmp_path, names):
    server.always = judge_server.only_with(names)
    service = Service(server, tmp_path)
    assert service.ask("one?", "two?") == ["no", "no"]
    refused = len(server.requests) - 2
    assert refused == len({"max_tokens", "temperature"} - names) + (not names)
    assert service.ask("three?") == ["no"] and len(server.requests) == refused + 3
    assert server.bodies[-1].keys() - {"model", "messages"} == names


def test_a_service_that_refuses_what_was_not_sent_is_asked_again(server, tmp_path):
    server.misbehaviour = [refuse(400, "unsupported_value", "temperature does not support 0")] * 3
    assert Service(server, tmp_path).ask("one?", "two?") == ["no", "no"]
    assert len(server.requests) == 5


def test_an_error_that_is_sent_as_a_success(server, tmp_path):
    body = {"error": {"message": "insufficient credits", "code": 402}}
    server.misbehaviour = [send(json.dumps({"error": {"message": "provider down", "code": 502}}).encode())]
    assert Service(server, tmp_path).ask("one?") == ["no"]
    server.always = send(json.dumps(body).encode())
    with pytest.raises(ValueError, match=r"402: insufficient credits\); add credit"):
        Service(server, tmp_path).ask("two?")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, {"reasoning_content": "Okay, the student"}), ("<think>\nThere is no", {}), ("", {})],
    ids=["thought apart", "thought in the text", "no text"],
)
def test_a_judge_that_thinks_is_given_room(server, tmp_path, content, message):
    def think(request: judge_server.Handler) -> None:
        enough = request.body["max_tokens"] >= 2000
        judge_server.say("<think>no</think>Yes" if enough else content, "stop" if enough else "length", **message)(
            request
        )

    server.always = think
    service = Service(server, tmp_path)
    assert service.ask("one?", "two?") == ["Yes", "Yes"]  # on disk without the thought
    assert [body["max_tokens"] for body in server.bodies] == [8, 2048, 2048]

    server.always = judge_server.say(content, "length", **message)
    assert service.ask("three?") == [None]
    assert "cut at 8192 tokens" in service.said[0]


def test_a_reply_that_was_cut_is_asked_for_again_with_more_tokens(server, tmp_path):
    server.misbehaviour = [judge_server.say("The student's answer is", "length")]
    server.always = judge_server.say("yes, because", "length")
    assert Service(server, tmp_path).ask("one?") == ["yes, because"]
    assert [body["max_tokens"] for body in server.bodies] == [8, 2048, 8192]


def test_a_small_context_takes_the_room_for_a_thought_back(server, tmp_path):
    too_long = refuse(400, message="max_tokens is too large: 2048. maximum context length is 2048 tokens")
    server.misbehaviour = [judge_server.say("Let me", "length"), too_long]
    assert Service(server, tmp_path).ask("one?") == ["no"]
    assert [body["max_tokens"] for body in server.bodies] == [8, 2048, 8]


@pytest.mark.parametrize(("piece", "pause"), [(b" " * 2**16, 0.0), (b" ", 0.05)], ids=["endless", "dripping"])
def test_a_body_without_an_end_is_not_read_for_ever(server, tmp_path, piece, pause):
    server.misbehaviour = [judge_server.endless(piece, pause)]
    service = Service(server, tmp_path, timeout_s=0.3)
    assert service.ask("one?") == ["no"]
    assert len(server.requests) == 2 and service.usage.retries == 1


def test_the_key_is_on_no_disk(server, tmp_path):
    server.misbehaviour = [judge_server.say(f"yes, {KEY}"), refuse(500, message=KEY)]
    service = Service(server, tmp_path)
    assert service.ask("one?", "two?") == ["yes, [key]", "no"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(KEY.encode() not in path.read_bytes() for path in files)
    assert all(
        KEY not in text for text in (*service.said, repr(service.config), repr(service.connection), repr(service.usage))
    )


def test_no_key(server, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    assert Service(server, tmp_path).ask("one?") == ["no"]  # one's own service may need none
    server.always = refuse(401)
    with pytest.raises(ValueError, match="set JUDGE_KEY"):
        Service(server, tmp_path).ask("two?")
    with pytest.raises(ValueError, match="JUDGE_KEY is not set"):
        Endpoint(Grader("endpoint", "m"), Connection(key_variable="JUDGE_KEY"), tmp_path / "j", Usage(), print)
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nsecond line")
    with pytest.raises(ValueError, match="JUDGE_KEY holds characters") as caught:
        Service(server, tmp_path)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("header", ["seconds", "milliseconds", "date"])
def test_the_wait_that_the_server_names_is_kept(server, tmp_path, header):
    value = {
        "seconds": {"Retry_After": "0.3"},
        "milliseconds": {"Retry_After_Ms": "300", "Retry_After": "9"},
        "date": {"Retry_After": email.utils.formatdate(time.time() + 2, usegmt=True)},  # whole seconds: 1 to 2
    }[header]
    server.misbehaviour = [refuse(429, **value)]
    assert Service(server, tmp_path).ask("one?") == ["no"]
    assert server.times[1] - server.times[0] >= 0.29


def test_no_wait_is_longer_than_two_minutes(server, tmp_path):
    """A server that asks for more has not replied, for now; the next prompt shows whether it is back."""
    server.misbehaviour = [refuse(429, Retry_After="86400"), refuse(503, Retry_After="inf")]
    assert Service(server, tmp_path).ask("one?", "two?") == [None, "no"]
    assert server.requests == ["one?", "two?", "two?"]


def test_requests_are_spread_over_the_minute(server, tmp_path):
    server.misbehaviour = [refuse(500)]  # what is tried again waits for its turn too
    service = Service(server, tmp_path, requests_per_minute=600, concurrency=4)
    began = time.monotonic()
    assert service.ask(*"abcd") == ["no"] * 4
    # Each has its turn; how late it comes depends on the machine, but none comes before.
    assert len(server.times) == 5 and all(at - began > 0.1 * turn - 0.02 for turn, at in enumerate(server.times))


def test_so_many_requests_are_under_way_and_no_more(server, tmp_path):
    together = threading.Barrier(3)

    def meet(request: judge_server.Handler) -> None:
        together.wait(20)
        judge_server.reply(request)

    server.always = meet
    assert Service(server, tmp_path, concurrency=3).ask(*"abcdef") == ["no"] * 6
    assert server.most_under_way == 3


def test_replies_are_on_disk_before_the_last_has_come(server, tmp_path):
    """So a killed run pays for none twice."""
    service = Service(server, tmp_path)
    kept: list[int] = []

    def look(request: judge_server.Handler) -> None:
        kept.append(len(service.cache.read_text().splitlines()))
        judge_server.reply(request)

    server.always = look
    service.ask("a", "b", "c")
    assert kept == [0, 1, 2]


@pytest.fixture
def interruptible():
    """As on a terminal: what a shell starts in the background is deaf to the interrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_no_reply(server, tmp_path, interruptible):
    server.misbehaviour = [judge_server.reply, hang, hang]
    service = Service(server, tmp_path, concurrency=2)

    def interrupt() -> None:
        while len(server.requests) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        service.ask(*map(str, range(10)))
    assert server.answered == 1 and not server.released.is_set()
    assert len(service.cache.read_text().splitlines()) == 1
    waiting = [thread for thread in threading.enumerate() if thread.name == "judge"]
    assert waiting and all(thread.daemon for thread in waiting)  # nor does the end of the program wait for them


def test_a_judge_of_answers(server, tmp_path):
    """From queries to verdicts, and what it cost."""
    config = Grader("endpoint", "judge", base_url=server.url)
    connection = Connection(key_variable="JUDGE_KEY", price_in=2.0, price_out=8.0)
    judge = make_judge(config, connection, cache=tmp_path / "judge.jsonl", devices=None, say=print)
    query = Query("Who wrote it?", "Who wrote it?", "Ada")
    assert judge.grade([query] * 5, ["Ada did", "Ada did", "Bo", "", " \n"]) == [True, True, False, False, False]
    assert len(server.requests) == 2  # an empty answer is wrong, and the same is asked once

    server.always = judge_server.say("length: 5\ndiversity: 3\nquality: 3\ncorrectness: 1")
    assert judge.rate is not None and judge.rate([("A passage.", "A note.")]) == [0.5]
    usage = judge.usage()
    assert (usage["calls"], usage["tokens_in"], usage["tokens_out"]) == (3, 300, 6)
    assert usage["usd"] == pytest.approx((300 * 2 + 6 * 8) / 1e6)
    assert json.loads(json.dumps(usage)) == usage
    report = judge.report()
    assert report is not None and "0.0006 USD" in report and "answered by judge-2026-01-01" in report


def test_an_ungraded_answer_is_neither_right_nor_wrong(server, tmp_path):
    server.misbehaviour = [refuse(500)] * 2
    config = Grader("endpoint", "judge", base_url=server.url)
    connection = Connection(key_variable="JUDGE_KEY", attempts=2, concurrency=1)
    judge = make_judge(config, connection, cache=tmp_path / "judge.jsonl", devices=None, say=lambda _: None)
    query = Query("Who?", "Who?", "Ada")
    assert judge.grade([query, query], ["Ada", "Bo"]) == [None, False]
