"""The documents say what is so: pages, options and presets that exist, errors as they are printed, a reference of
names that exist, links that lead somewhere; and what they show to be run runs."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest

from experiments.benchmark import compiled
from experiments.benchmark.bench import Settings
from seal_jax.domains.passages import load_passages
from seal_jax.run import session
from seal_jax.types import Compute
from tests import tiny

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "experiments").glob("*.md"))
GUIDE = DOCS / "guide.md"
NOTEBOOK = DOCS / "notebook.ipynb"
EXAMPLES = ROOT / "examples"
UNWRITTEN: set[str] = set()  # pages still to come


def load(path: Path) -> ModuleType:
    """A script as a module, not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def blocks(text: str, language: str = "") -> list[str]:
    """What stands in the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# ---------------------------------------------------------------------------------------------------------------------
# A page for each experiment


def test_every_experiment_has_a_page():
    can_be_run = {p.stem for p in (ROOT / "experiments").glob("*.py") if '__name__ == "__main__"' in p.read_text()}
    can_be_run -= {"__main__"}
    can_be_run |= {p.parent.name for p in (ROOT / "experiments").glob("*/__main__.py")}
    assert "squad" in can_be_run
    pages = {page.stem for page in PAGES}
    assert pages | UNWRITTEN == can_be_run | UNWRITTEN
    assert not pages & UNWRITTEN, "written: take it out of UNWRITTEN"


def fields(settings: Any, prefix: str = "") -> Iterator[str]:
    """The options that a config's fields become."""
    if dataclasses.is_dataclass(settings):
        inside = [(field.name, getattr(settings, field.name)) for field in dataclasses.fields(settings)]
    elif hasattr(settings, "_fields"):
        inside = list(zip(settings._fields, settings, strict=True))
    else:
        yield f"--{prefix}"
        return
    for name, value in inside:
        yield from fields(value, f"{prefix}.{name}" if prefix else name)


def settings_of(name: str) -> tuple[set[str], set[str]]:
    """An experiment's options and presets, or its subcommands."""
    module = importlib.import_module(f"experiments.{name}")
    if name == "benchmark":
        options = set(fields(Settings())) | set(fields(compiled.Settings()))
        return options, {*get_args(get_type_hints(Settings)["command"]), "compile"}
    if name == "parity":
        return set(), set()
    if name == "library":
        commands = get_args(module.COMMANDS)
        own = {f"--{field.name}" for command in commands for field in dataclasses.fields(command)}
        return own | set(fields(module.COURSE)) | set(fields(Compute(), "compute")), {
            c.__name__.lower() for c in commands
        }
    if not hasattr(module, "EXPERIMENT"):
        config = getattr(module, "Config", None) or module.Command
        nested = {
            option
            for field in dataclasses.fields(config)
            if dataclasses.is_dataclass(field.default)
            for option in fields(field.default, field.name)
        }
        return nested | {f"--{field.name}" for field in dataclasses.fields(config)}, set()
    presets = module.EXPERIMENT.presets
    options = {option for preset in presets.values() for option in fields(preset.config)}
    return options | set(fields(Compute(), "compute")) | set(fields(session.Place())), set(presets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_the_presets_and_options_that_there_are(page: Path):
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# experiments.{page.stem}\n")
    assert f"python -m experiments.{page.stem}" in blocks(text, "bash")[0]
    options, presets = settings_of(page.stem)
    table = re.search(r"^\| (?:preset|subcommand) \| \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = table[1].splitlines() if table else []
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} == presets
    known = {option.replace("_", "-").replace("--.", "--") for option in options}
    groups = {option.rsplit(".", n)[0] for option in known for n in (1, 2)}  # --inner, of which there are many
    for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*[\w]", text):
        plain = re.sub(r"(^--|\.)no-", r"\1", option)
        assert {option, plain} & (known | groups), f"{page.name}: {option}"


# ---------------------------------------------------------------------------------------------------------------------
# Errors as they are printed


def pieces(node: ast.expr) -> list[str]:
    """A text's parts as regular expressions: what is fixed, and what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [re.escape(node.value)]
    if isinstance(node, ast.JoinedStr):
        return [piece for value in node.values for piece in pieces(value)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return pieces(node.left) + pieces(node.right)
    return [".*"]


@functools.cache
def texts() -> list[list[str]]:
    """Every text in the source of the program, and every message of the Makefile."""
    found = []
    for folder in ("seal_jax", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [pieces(n) for n in ast.walk(tree) if isinstance(n, ast.Constant | ast.JoinedStr | ast.BinOp)]
    for message in re.findall(r'"(set-up: [^"]*)"', (ROOT / "Makefile").read_text(encoding="utf-8")):
        fixed = re.split(r"\$\([A-Z]+\)|%d\.%d\.%d", message)
        found.append([part for text in fixed for part in (re.escape(text), ".*")][:-1])
    return found


def is_in_the_source(message: str) -> bool:
    """Whether some text of the source, filled in, is the message; or begins so, where it is cut (`...`)."""
    cut = message.endswith("...")
    message = message.removesuffix("...").strip()
    for parts in texts():
        for end in range(1, len(parts) + 1) if cut else (len(parts),):
            shown = parts[:end] + ([".*"] if cut else [])
            fixed = sum(len(part) for part in shown if part != ".*")
            if fixed >= 15 and re.fullmatch("".join(shown), message, re.DOTALL):
                return True
    return False


ENTRIES = [entry.strip().removeprefix("error: ") for entry in blocks((DOCS / "faq.md").read_text(encoding="utf-8"))]


@pytest.mark.parametrize("message", ENTRIES, ids=lambda message: " ".join(message.split()[:6]))
def test_an_error_of_the_faq_is_one_that_is_printed(message: str):
    assert is_in_the_source(message)


def test_an_error_that_nothing_prints_is_not_taken_for_one():
    assert len(ENTRIES) > 20
    assert not is_in_the_source("learning to write exploded at learning rate 0.01; lower it")
    assert not is_in_the_source("smollm2-135m is nowhere in the cache (here), and pip could not fetch it: no ...")


# ---------------------------------------------------------------------------------------------------------------------
# The reference


def test_the_reference_names_what_there_is():
    """`make docs` builds the page, strictly; a name that is gone is found here without it."""
    names = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"seal_jax.run.adapted.adapt", "seal_jax.types"} <= set(names)
    for name in names:
        pkgutil.resolve_name(name)


def test_every_page_is_in_the_sites_menu():
    listed = re.findall(r"^ +- (?:\w+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


# ---------------------------------------------------------------------------------------------------------------------
# Links


def anchors(text: str) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.M):
        slug = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return names


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")), NOTEBOOK],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_links_lead_somewhere(path: Path):
    text = path.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", text):
        linked = path.parent / target if target else path
        assert linked.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{target} has no heading {anchor}"


# ---------------------------------------------------------------------------------------------------------------------
# What the guide shows


def test_the_guides_passages_are_read(tmp_path):
    (tmp_path / "mine.json").write_text(blocks(GUIDE.read_text(encoding="utf-8"), "json")[0], encoding="utf-8")
    (passage,) = load_passages(str(tmp_path / "mine.json"), "train")
    assert len(passage.questions) == 2
    assert all(question.answer in passage.context for question in passage.questions)


def test_the_guide_shows_the_example_of_a_domain_whole():
    shown = blocks(GUIDE.read_text(encoding="utf-8"), "python")
    assert (EXAMPLES / "domain.py").read_text(encoding="utf-8") in shown


@pytest.mark.parametrize("name", ["domain", "loss", "outer_loop", "grader"])
def test_each_extension_is_one_short_file_outside_the_package(name):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.fixture
def example(monkeypatch):
    """`example("domain")`: what its `main` returns."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda name: load(EXAMPLES / f"{name}.py").main()


@pytest.mark.slow
def test_the_domain_is_learned(example):
    rewards = example("domain")
    assert len(rewards) == 4
    assert rewards[0] < 0.3
    assert rewards[-1] > 0.8, rewards


def test_the_domain_learns_other_words(monkeypatch):
    """Whatever a reader calls doors and colours."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    domain = load(EXAMPLES / "domain.py")
    doors = [domain.Door("cellar", "ochre"), domain.Door("attic", "violet")]
    monkeypatch.setattr(domain, "DOORS", doors)
    assert domain.main()[-1] > 0.8


def test_the_outer_loop_improves_the_reward(example):
    rewards = example("outer_loop")
    assert rewards[-1] > rewards[0] + 0.2, rewards


def test_the_loss_is_the_adapters_own(example):
    plain, smoothed = example("loss")
    assert plain < 0.1
    assert smoothed > plain + 0.3  # the entropy of its targets


def test_the_grader_grades(example):
    assert example("grader") == [False, True, False, None]


# ---------------------------------------------------------------------------------------------------------------------
# The notebook


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_holds_a_run_from_top_to_bottom():
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} == {"stream"}  # no error
    shown = "".join("".join(output["text"]) for output in cells[-1]["outputs"])
    assert shown.count("before:") == shown.count("after:") == shown.count("(gold: ") == 10


@pytest.mark.slow
def test_the_notebook_runs_at_small_size(tmp_path):
    """As papermill would: what is set below follows the cell that is tagged `parameters`."""
    cells, model = code_cells(), tiny.model_folder(tmp_path / "model")
    (place,) = [n for n, cell in enumerate(cells) if cell["metadata"].get("tags") == ["parameters"]]
    sources = ["".join(cell["source"]) for cell in cells]
    for name in ("MODEL", "NOTES", "WRITTEN", "EPOCHS"):
        assert re.search(rf"^{name} = ", sources[place], re.MULTILINE)
    sources.insert(place + 1, f"MODEL, WRITTEN, EPOCHS = {str(model)!r}, 16, 1")
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(sources), encoding="utf-8")
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "SEAL_JAX_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=DOCS,
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("before: ") == 10
    assert len(re.findall(r"(?:passage alone|self-edit \d) +(?:loss [\d.]+ to [\d.]+ nats|\w)", done.stdout)) == 6
