"""Typical mistakes and what each is answered with, as a page: `python -m docs.mistakes > docs/mistakes.md`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from seal_jax.run.journal import RunFolder

ROOT = Path(__file__).parents[1]
PAGE = """# Typical mistakes

What is typed after `python -m experiments` or `seal-jax`, and the answer, as printed; the exit status is 2. Made by
running them, without a network: `python -m docs.mistakes > docs/mistakes.md`. The [FAQ](faq.md) says more on some.

| what is wrong | typed | answered |
|---|---|---|
"""
MISTAKES = """
no such experiment | squid demo
no such preset | squad dmo
no such option | squad demo --outer.ronds 2
not a number | squad demo --outer.rounds two
a number too small | squad demo --inner.rank 0
not one of the choices | squad demo --dtype float8
no such model | squad demo --model smolm2
no such folder | squad demo --model ./my-model
a file that is no model | squad demo --model notes.md
pickled weights | squad demo --model pickled
a model that is not here, and no network | squad demo --model Qwen/Qwen2.5-0.5B-Instruct
data that is not here, and no network | squad paper
no such data set | squad demo --data squd
no such file | squad demo --data my.json
not JSON | squad demo --data broken.json
a field is missing | squad demo --data no-answer.json
too few passages | squad demo --data mine.json
no such prompt | squad demo --prompt implication
a prompt without its parts | squad demo --prompt prompt.toml
recorded for other passages | squad demo --external mine.json
an option that wants another | squad demo --outer.method best_of_n
a judge without a name | squad demo --grader.kind endpoint
options that contradict each other | squad demo --compute.devices 2 --compute.mesh adapter=4
a mesh that is none | squad demo --compute.mesh tensor:2
somebody else's folder | squad demo --run-folder notes
a folder in use | squad demo --run-folder in-use
a settings file with a typo | squad demo --config typo.toml
settings of another experiment | squad --config cpt.toml
no such run | report runs/mine
a format that is not read | adapt --document notes.docx
an empty document | adapt empty.md
a package that is not installed | adapt report.pdf
nothing to learn | adapt
nothing to compare | evaluate_edits demo
no such ARC data | arc demo --data arc-agi-3
a misspelt field of a grid | ablations demo --grid inner.rnk=4,8
no such file of answers | grade --answers answers.jsonl
"""


class Mistake(NamedTuple):
    what: str
    typed: str
    answer: str
    status: int


def made() -> list[Mistake]:
    """All of them, each a process of its own in a folder that has what they name."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool, _folder(Path(scratch)):
        rows = [line.split(" | ") for line in MISTAKES.strip().splitlines()]
        return list(pool.map(lambda row: _make(*row, Path(scratch)), rows))


def _make(what: str, typed: str, folder: Path) -> Mistake:
    words = shlex.split(typed)
    own = {name: text for name, text in os.environ.items() if not name.startswith(("XLA_", "HF_", "OPENAI_"))}
    own |= {
        "PYTHONPATH": f"without{os.pathsep}{ROOT}",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": "hub",
        "COLUMNS": "1000",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "experiments", *words], cwd=folder, env=own, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = done.stderr.removeprefix("error: ").replace(f"{folder.resolve()}/", "").replace(f"{ROOT}/", "")
    return Mistake(what, typed, " ".join(said.split()), done.returncode)


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """What the commands name."""
    question = {"question": "Who keeps the lamp?", "answer": "Edda"}
    passage = {"title": "Lamp", "context": "Edda keeps the lamp.", "questions": [question]}
    files = {
        "notes.md": "# Notes\n\nEdda keeps the lamp.\n", "notes.docx": "PK", "empty.md": "", "notes/list.txt": "milk",
        "mine.json": json.dumps([passage]), "broken.json": '[{"title": "Lamp",', "prompt.toml": 'raw = "{title}"\n',
        "no-answer.json": json.dumps([{**passage, "questions": [{"question": "Who?"}]}]),
        "pickled/config.json": "{}", "pickled/pytorch_model.bin": "", "typo.toml": "outer.ronds = 2\n",
        "cpt.toml": 'experiment = "cpt"\n', "report.pdf": "%PDF-1.4",
        "without/pypdf.py": 'raise ModuleNotFoundError("No module named pypdf")\n',
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    with contextlib.closing(RunFolder(folder / "in-use", {})):
        yield


def page(mistakes: list[Mistake]) -> str:
    """The table as Markdown."""
    rows = []
    for made in mistakes:
        answer = made.answer.replace("`", "'").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
        rows.append(f"| {made.what} | `{made.typed}` | {answer} |\n")
    return PAGE + "".join(rows)


if __name__ == "__main__":
    print(page(made()), end="")
