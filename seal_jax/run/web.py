"""A page in the browser over a library: paste a document, watch it being learned, ask, and see before and after.

The page is NiceGUI's (extra `web`), served to this machine alone. Whoever opens it teaches and asks the same library,
one after another: what computes runs in a thread, and the page reports meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import socket
import time
import traceback
from collections.abc import Iterator
from typing import Any

from seal_jax.domains import document as texts
from seal_jax.run.adapted import Answer
from seal_jax.run.journal import digest, read_json, write_atomically
from seal_jax.run.library import DRAFT, Entry, Library, name_of
from seal_jax.run.terminal import show

HOST = "127.0.0.1"
LEAST_WORDS = 5  # of a document: fewer teach nothing
REFRESH = 0.5  # seconds between two looks at the work under way
SHOWN = 4  # of the questions that the model wrote on a document, as examples of what to ask


def require(port: int) -> None:
    """Raises ValueError where the page cannot be served: its library is not installed, or the port is not free."""
    if importlib.util.find_spec("nicegui") is None:
        raise ValueError("--web needs NiceGUI: pip install 'seal_jax[web]'")
    if not 1 <= port <= 65535:
        raise ValueError(f"--port {port}: expected 1 to 65535")
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a page just closed is no other
        try:
            free.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"--port {port}: another program has it; name another port") from error


def serve(library: Library, *, port: int, browser: bool) -> None:
    """Serves the page until Ctrl-C; opens it in a browser, if asked to. Raises as `require`."""
    require(port)
    from nicegui import app, ui
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # Another site whose name points here must not reach the page.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    show(f"{library!r}\nhttp://{HOST}:{port}   (Ctrl-C ends it)")
    ui.run(
        Page(library).build,
        host=HOST,
        port=port,
        show=browser,
        reload=False,
        title="seal_jax",
        show_welcome_message=False,
        loop="asyncio",  # uvloop would take the signals' wake-up from ends.py
    )


class Page:
    """What all who have the page open share: a library, and the work under way."""

    def __init__(self, library: Library):
        self.library, self.said = library, list[str]()
        self.lessons = 0  # that have ended
        self._turn = asyncio.Lock()
        self._since: float | None = None  # when the lesson under way began
        library.say = lambda text: self.said.append(text)  # from the thread that works

    def build(self) -> None:
        """The page of one visitor."""
        from nicegui import ui

        ui.label("Teach a model a text, then ask it").classes("text-h5")
        ui.label(
            f"{self.library.course.model} writes notes on the text, trains an adapter on them, and answers without "
            f"the text in view. Kept in {self.library.folder}."
        ).classes("text-grey-8")
        with ui.row().classes("w-full items-start gap-6"):
            with ui.column().classes("flex-1 min-w-80"):
                self._teaching(ui)
            with ui.column().classes("flex-1 min-w-80"):
                self._asking(ui)

    def _teaching(self, ui: Any) -> None:
        stopped = self.draft()
        title = ui.input("Title", value=stopped[0]).classes("w-full")
        text = ui.textarea("Text", placeholder="Plain text or Markdown", value=stopped[1])
        text.props("outlined rows=8").classes("w-full")
        button = ui.button("Learn it").props("no-caps")
        state, log = ui.label().classes("text-grey-8"), ui.log(max_lines=200).classes("w-full h-48")
        shown, seen = 0, self.lessons

        def look() -> None:
            """Shows what the work has said since the last look, and documents that are new."""
            nonlocal shown, seen
            shown = shown if shown <= len(self.said) else 0  # another lesson has begun
            new = self.said[shown:]
            shown += len(new)
            for line in new:
                log.push(line)
            state.text = "" if self._since is None else f"learning for {time.monotonic() - self._since:.0f} s"
            if seen != self.lessons:
                seen = self.lessons
                documents.refresh()

        async def learn() -> None:
            given = title.value, text.value
            for field in (button, title, text):
                field.disable()
            with _notified(ui):
                taught = await self.learn(*given)
                ui.notify(f"{taught}: learned", type="positive")
                title.value = text.value = ""
            for field in (button, title, text):
                field.enable()
            look()

        button.on_click(learn)
        ui.timer(REFRESH, look)

        @ui.refreshable  # type: ignore[untyped-decorator]
        def documents() -> None:
            entries = list[Entry]()
            with _notified(ui):
                entries = self.library.entries()
            ui.label(f"{len(entries)} learned").classes("text-h6")
            for entry in entries:
                with ui.expansion(entry.title, caption=caption(entry)).classes("w-full"):
                    for question in entry.questions[:SHOWN]:
                        ui.label(question).classes("text-grey-8")

        documents()

    def _asking(self, ui: Any) -> None:
        async def ask() -> None:
            if not (asked := question.value.strip()) or not question.enabled:
                return
            for field in (question, button):
                field.disable()
            waiting = ui.notification("answering", spinner=True, timeout=None)
            with _notified(ui):
                answer = await self.ask(asked)
                with answers:
                    answered(ui, answer)
                question.value = ""
            waiting.dismiss()
            for field in (question, button):
                field.enable()

        question = ui.input("Question").on("keydown.enter", ask).classes("w-full")
        button = ui.button("Ask", on_click=ask).props("no-caps")
        answers = ui.column().classes("w-full flex-col-reverse")  # the newest first

    def draft(self) -> tuple[str, str]:
        """Title and text of a lesson that was stopped, or two empty ones. Learned again it carries on."""
        kept = None if self._since is not None else read_json(self.library.folder / DRAFT)
        return (str(kept.get("title", "")), str(kept.get("text", ""))) if isinstance(kept, dict) else ("", "")

    async def learn(self, title: str, text: str) -> str:
        """Teaches a text, in its turn. Its name in the library.

        Raises:
            ValueError, OSError: no title or text, a title that another text has; as `Library.add`.
        """
        if not title.strip() or len(text.split()) < LEAST_WORDS:
            raise ValueError(f"expected a title, and a text of {LEAST_WORDS} words or more")
        name, document = name_of(title), texts.parse(text, name=title.strip(), markdown=True)
        async with self._turn:
            for entry in self.library.entries():
                if entry.name == name:
                    other = entry.digest != digest(document)
                    raise ValueError(
                        f"{name} is there with another text; choose another title, or remove that document first"
                        if other
                        else f"{name} is learned already, as it is"
                    )
            self._since = time.monotonic()
            self.said.clear()
            try:
                self.library.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self.library.folder / DRAFT, json.dumps({"title": title, "text": text}))
                await asyncio.to_thread(self.library.add, {name: document})
                (self.library.folder / DRAFT).unlink(missing_ok=True)
            finally:
                self._since, self.lessons = None, self.lessons + 1
        return name

    async def ask(self, question: str) -> Answer:
        """The answer to a question, in its turn. Raises ValueError, OSError as `Library.ask`."""
        async with self._turn:
            (answer,) = await asyncio.to_thread(self.library.ask, [question])
        return answer


@contextlib.contextmanager
def _notified(ui: Any) -> Iterator[None]:
    """Shows a visitor what goes wrong: a mistake as a sentence, anything else with a traceback in the terminal too."""
    try:
        yield
    except (ValueError, OSError) as error:
        ui.notify(str(error), type="negative", multi_line=True)
    except Exception as error:
        traceback.print_exc()
        ui.notify(f"failed, see the terminal: {error}", type="negative", multi_line=True)


def caption(entry: Entry) -> str:
    """What stands under a document's title."""
    own = f"{len(entry.passages)} passage{'' if len(entry.passages) == 1 else 's'}, {entry.seconds:.0f} s"
    if entry.before is None or entry.after is None:
        return own
    return f"{own}; its own questions: {entry.before:.0%} right before, {entry.after:.0%} after"


def answered(ui: Any, answer: Answer) -> None:
    """A question over its two answers."""
    before, after = answer.shown
    learned = "no document is about it" if answer.document is None else f"with {answer.document}"
    sure = "" if answer.sure is None else f" ({answer.sure:.0%} sure)"
    with ui.card().classes("w-full"):
        ui.label(answer.question).classes("text-weight-bold")
        with ui.row().classes("w-full items-start"):
            for label, text in (("before", before), (f"{learned}{sure}", after)):
                with ui.column().classes("flex-1"):
                    ui.label(label).classes("text-caption text-grey-8")
                    ui.label(text or "(nothing)")
