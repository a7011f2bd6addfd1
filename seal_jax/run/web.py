"""A page in the browser over a library: paste a document, watch it being learned, ask, and see before and after.

The page is NiceGUI's (extra `web`), served to this machine alone. Whoever opens it teaches and asks the same library,
one after another: what computes runs in a thread, and the page goes on telling what it does.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from typing import Any

from seal_jax.domains import document as texts
from seal_jax.domains.passages import slug
from seal_jax.run.adapted import Answer
from seal_jax.run.library import Entry, Library
from seal_jax.run.terminal import show

LEAST_WORDS = 5  # of a document: fewer teach nothing
REFRESH = 0.5  # seconds between two looks at what the work under way has said
SHOWN = 4  # of the questions that the model wrote on a document, as examples of what to ask


def require_nicegui() -> None:
    """Raises ValueError where the page's library is not installed."""
    if importlib.util.find_spec("nicegui") is None:
        raise ValueError("--web needs NiceGUI: pip install 'seal_jax[web]'")


def serve(library: Library, *, port: int, browser: bool) -> None:
    """Serves the page until Ctrl-C; opens it in a browser, if asked to."""
    require_nicegui()
    from nicegui import ui

    page = Page(library)
    show(f"{library!r}\nhttp://127.0.0.1:{port}   (Ctrl-C ends it)")
    ui.run(
        page.build,
        host="127.0.0.1",
        port=port,
        show=browser,
        reload=False,
        title="seal_jax",
        show_welcome_message=False,
    )


class Page:
    """What all who have the page open share: a library, and the work under way."""

    def __init__(self, library: Library):
        self.library, self.said = library, list[str]()
        self._turn = asyncio.Lock()
        self._since: float | None = None  # when what is learned now was begun
        library.say = self.said.append  # from the thread that works

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
        title = ui.input("Title").classes("w-full")
        text = ui.textarea("Text", placeholder="Plain text or Markdown").props("outlined rows=8").classes("w-full")
        button = ui.button("Learn it").props("no-caps")
        state, log = ui.label().classes("text-grey-8"), ui.log(max_lines=200).classes("w-full h-48")
        shown = 0

        def look() -> None:
            """Tells what the work has said since the last look."""
            nonlocal shown
            new, shown = self.said[shown:], len(self.said)
            for line in new:
                log.push(line)
            state.text = "" if self._since is None else f"learning for {time.monotonic() - self._since:.0f} s"

        async def learn() -> None:
            button.disable()
            try:
                taught = await self.learn(title.value, text.value)
                ui.notify(f"{taught}: learned", type="positive")
                title.value = text.value = ""
            except (ValueError, OSError) as error:
                ui.notify(str(error), type="negative", multi_line=True)
            finally:
                look()
                button.enable()
                documents.refresh()

        button.on_click(learn)
        ui.timer(REFRESH, look)

        @ui.refreshable  # type: ignore[untyped-decorator]
        def documents() -> None:
            entries = self.library.entries()
            ui.label(f"{len(entries)} learned").classes("text-h6")
            for entry in entries:
                with ui.expansion(entry.title, caption=told(entry)).classes("w-full"):
                    for question in entry.questions[:SHOWN]:
                        ui.label(question).classes("text-grey-8")

        documents()

    def _asking(self, ui: Any) -> None:
        async def ask() -> None:
            if not (asked := question.value.strip()):
                return
            question.disable()
            waiting = ui.notification("answering", spinner=True, timeout=None)
            try:
                answer = await self.ask(asked)
                with answers:
                    answered(ui, answer)
                question.value = ""
            except (ValueError, OSError) as error:
                ui.notify(str(error), type="negative", multi_line=True)
            finally:
                waiting.dismiss()
                question.enable()

        question = ui.input("Question").on("keydown.enter", ask).classes("w-full")
        ui.button("Ask", on_click=ask).props("no-caps")
        answers = ui.column().classes("w-full flex-col-reverse")  # the newest first

    async def learn(self, title: str, text: str) -> str:
        """Teaches a text, in its turn. Its name in the library.

        Raises:
            ValueError, OSError: no title or text; as `Library.add`.
        """
        name = slug(title)
        if not name or len(text.split()) < LEAST_WORDS:
            raise ValueError(f"expected a title with a letter or digit, and a text of {LEAST_WORDS} words or more")
        document = texts.parse(text, name=title.strip(), markdown=True)
        async with self._turn:
            self._since = time.monotonic()
            try:
                new = await asyncio.to_thread(self.library.add, {name: document})
            finally:
                self._since = None
        if not new:
            raise ValueError(f"{name} is learned already, as it is")
        return name

    async def ask(self, question: str) -> Answer:
        """The answer to a question, in its turn. Raises ValueError, OSError as `Library.ask`."""
        async with self._turn:
            (answer,) = await asyncio.to_thread(self.library.ask, [question])
        return answer


def told(entry: Entry) -> str:
    """What a document's line says."""
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
