"""The page over a library: a text pasted into it is learned, and questions answered, one visitor after another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from experiments import library as commands
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.run import runtime, web
from seal_jax.run.adapted import Course, Notes
from seal_jax.run.library import Library
from seal_jax.seal.teaching import Teaching
from seal_jax.types import Compute
from tests import tiny

testing = pytest.importorskip("nicegui.testing")
TEXT = "Its keeper is Tobin Aske, who also repairs umbrellas. The lamp burns fish oil."
LONG = 400  # looks, each a tenth of a second: programs are compiled meanwhile


@pytest.fixture
def page(monkeypatch, tmp_path) -> web.Page:
    monkeypatch.setattr(runtime, "start", lambda devices: None)  # the tests' own devices and no cache on the disk
    course = Course(
        str(tiny.model_folder(tmp_path / "model")),
        teaching=Teaching(candidates=1, edits=1, passage_tokens=64, questions=2),
        inner=FineTuning(("q_proj",), rank=2, alpha=4.0, learning_rate=1e-2, epochs=1),
        notes=Notes("facts", max_sequences=2, sampling=Sampling(max_tokens=8), answer_tokens=4),
    )
    return web.Page(Library(tmp_path / "library", course=course, compute=Compute(width_cuts=(), devices=1)))


def visit(page: web.Page, act: Callable[..., Awaitable[None]]) -> None:
    """A visitor without a browser, who acts on the opened page."""

    async def come() -> None:
        async with testing.user_simulation(page.build) as user:
            await user.open("/")
            await act(user)

    asyncio.run(come())


def test_a_text_is_learned_then_asked_about_and_a_mistake_is_a_sentence(page):
    async def act(user) -> None:
        await user.should_see("0 learned")
        user.find("Learn it").click()
        await user.should_see("expected a title, and a text of 5 words or more")

        user.find("Title").type("The lamp")
        user.find("Text").type(TEXT)
        user.find("Learn it").click()
        await user.should_see("1 learned", retries=LONG)
        await user.should_see("1 of 1 documents")  # what the work said
        assert [entry.name for entry in page.library.entries()] == ["the-lamp"]
        assert "training: 100 %" in page.said

        user.find("Question").type("Who is the keeper of the lamp?").trigger("keydown.enter")
        await user.should_see("with the-lamp", retries=LONG)
        await user.should_see("before")
        user.find("Question").type("Who wrote Hamlet?")
        user.find("Ask").click()
        await user.should_see("no document is about it", retries=LONG)

    visit(page, act)
    assert page.library.path("the-lamp").is_dir()


def test_a_text_whose_lesson_was_stopped_is_in_the_page_again(page, monkeypatch):
    monkeypatch.setattr(page.library, "add", lambda documents: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="disk is full"):  # as a kill leaves it: the text on disk, nothing learned
        asyncio.run(page.learn("The lamp", TEXT))
    again = web.Page(Library(page.library.folder, course=page.library.course, compute=page.library.compute))

    async def act(user) -> None:
        (text,) = user.find("Text").elements
        assert text.value == TEXT
        user.find("Learn it").click()
        await user.should_see("1 learned", retries=LONG)

    visit(again, act)
    assert again.draft() == ("", "")


def test_the_same_text_is_not_learned_twice_and_two_wait_for_each_other(page):
    async def both() -> list[object]:
        return await asyncio.gather(page.learn("Lamp", TEXT), page.learn("Lamp", TEXT), return_exceptions=True)

    first, second = asyncio.run(both())
    assert first == "lamp"
    assert str(second) == "lamp is learned already, as it is"


def test_another_text_of_the_same_title_replaces_nothing(page):
    asyncio.run(page.learn("Лампа", TEXT))
    before = {entry.name: entry.digest for entry in page.library.entries()}
    assert next(iter(before)).startswith("document-")  # a name of letters that a folder may not have
    with pytest.raises(ValueError, match="is there with another text; choose another title"):
        asyncio.run(page.learn("Лампа", TEXT + " It was lit in 1831."))
    assert {entry.name: entry.digest for entry in page.library.entries()} == before


def test_an_error_of_another_kind_is_shown_too(page, monkeypatch):
    def broken(questions):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(page.library, "ask", broken)

    async def act(user) -> None:
        user.find("Question").type("Who?")
        user.find("Ask").click()
        await user.should_see("failed, see the terminal: RESOURCE_EXHAUSTED", retries=50)

    visit(page, act)


@pytest.mark.parametrize("wrong", ["no NiceGUI", "no port", "a port of another"])
def test_where_the_page_cannot_be_served_it_is_said_and_nothing_made(monkeypatch, capsys, tmp_path, wrong):
    with socket.socket() as other:
        other.bind((web.HOST, 0))
        other.listen()
        port = {"no port": 99999, "a port of another": other.getsockname()[1]}.get(wrong, 8080)
        if wrong == "no NiceGUI":
            monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: None)
        assert commands.main(["chat", str(tmp_path / "new"), "--web", "--port", str(port)]) == 2
    said = {
        "no NiceGUI": "pip install 'seal_jax[web]'",
        "no port": "--port 99999: expected 1 to 65535",
        "a port of another": f"--port {port}: another program has it",
    }
    assert said[wrong] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
