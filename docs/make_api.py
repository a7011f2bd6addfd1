"""Writes docs/api.md from the docstrings, fields and signatures of what a user of the library needs.

    python docs/make_api.py

Reads the source and imports nothing of it. `NAMES` says what is shown; a name that is gone ends it with an error.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
HEAD = """# API

What a program of your own needs; made by `docs/make_api.py` from the docstrings. [The guide](guide.md) puts it to
use, the tree in [README](../README.md) says what else there is. Letters in shapes: P tasks, E self-edits (an adapter
each), N training sequences of a self-edit, S inner steps, B sequences a step, T tokens, Q questions, L layers, D model
width, V vocabulary.
"""

# Module -> the names shown, in this order.
NAMES: dict[str, tuple[str, ...]] = {
    "seal_jax.run.adapted": ("adapt", "Adapted", "Answer"),
    "seal_jax.seal.teaching": ("Teaching",),
    "seal_jax.types": (
        "Domain", "SelfEdit", "Example", "Settings", "Query", "Verdict", "Grade", "GradeTasks", "Rate", "by_query",
        "LanguageModel", "Codec", "TokenBatch", "HParams",
    ),
    "seal_jax.run.runtime": ("start", "load_language_model", "make_mesh", "place"),
    "seal_jax.engine.inner": (
        "adapt_many", "begin", "adapt", "update", "loss_and_gradient", "Optimiser", "Training", "InnerState", "Metrics",
        "Chunk", "is_finite",
    ),
    "seal_jax.engine.batching": ("Tokens", "tokenize", "make_batch", "bucket_widths", "left_pad"),
    "seal_jax.engine.training": ("FineTuning", "Shapes", "train", "log_likelihoods", "untrained"),
    "seal_jax.engine.sampler": ("Sampling", "Completions", "sample", "row_keys"),
    "seal_jax.seal.rewards": ("Score", "score", "score_base", "ask"),
    "seal_jax.seal.rest_em": (
        "OuterLoop", "Loop", "Trial", "RoundLog", "rest_em_round", "try_base", "write_self_edits", "try_self_edits",
        "rate_self_edits", "select", "sft",
    ),
    "seal_jax.seal.continual": ("Retention", "run_streams"),
    "seal_jax.nn.lora": ("Adapter", "PROJECTIONS", "init", "stack", "take", "join", "merge"),
    "seal_jax.io.peft": ("save_peft", "load_peft", "with_peft"),
    "seal_jax.domains.passages": ("Passage", "Question", "load_passages", "load_recorded", "shuffled"),
    "seal_jax.domains.squad": ("Prompts", "load_prompts", "make_domain", "parse", "passage_only"),
    "seal_jax.domains.arc.domain": ("TrainingSet", "Inference", "make_domain"),
    "seal_jax.domains.arc.tasks": ("Task", "Pair", "load_tasks"),
    "seal_jax.graders.lexical": ("grade_by_match", "matches"),
    "seal_jax.graders.choose": ("Grader", "Judge"),
    "seal_jax.graders.judge": ("grade_with", "rate_with"),
    "seal_jax.graders.agreement": ("Agreement", "agreement", "read_answers"),
    "seal_jax.run.judges": ("make_judge",),
    "seal_jax.run.journal": ("RunFolder", "write_atomically"),
    "seal_jax.seal.evaluation": ("Stage", "base_stage", "trained_stage", "rows", "summary"),
    "seal_jax.analysis.statistics": ("Interval", "bootstrap_mean", "paired_bootstrap", "bootstrap_ratio", "wilson"),
    "seal_jax.analysis.reliability": ("Reliability", "reward_reliability", "Choice", "choose_best"),
}  # fmt: skip

Definition = ast.FunctionDef | ast.ClassDef


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, contents(), *(module_section(module, names) for module, names in NAMES.items())])


def contents() -> str:
    """A line a module, with links to its names."""
    lines = []
    seen: Counter[str] = Counter()

    def link(shown: str, title: str) -> str:
        anchor = re.sub(r"[^\w-]", "", title.lower())  # as GitHub makes it of a heading, numbered where there are two
        seen[anchor] += 1
        return f"[{shown}](#{anchor}{f'-{seen[anchor] - 1}' if seen[anchor] > 1 else ''})"

    for module, names in NAMES.items():
        own = link(_short(module), module)
        lines.append(f"- {own}: {', '.join(link(name, _title(module, name)) for name in names)}")
    return "\n".join(lines) + "\n"


def module_section(module: str, names: tuple[str, ...]) -> str:
    """A module's own docstring, and its names.

    Raises:
        ValueError: a name that the module does not have, or that has no docstring.
    """
    file = ROOT / (module.replace(".", "/") + ".py")
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    parts = [f"## {module}\n", prose(ast.get_docstring(tree) or "")]
    for name in names:
        found = _find(tree, name)
        if found is None:
            raise ValueError(f"{file}: has no {name}; mend NAMES in {Path(__file__).name}")
        parts += [f"### {_title(module, name)}\n", _entry(found, source.splitlines(), tree)]
    return "\n".join(parts)


def _find(tree: ast.Module, name: str) -> ast.stmt | None:
    for node in tree.body:
        if isinstance(node, Definition) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node
    return None


def _entry(node: ast.stmt, lines: list[str], tree: ast.Module) -> str:
    """Signature or fields as they stand in the source, then what the docstring says."""
    if isinstance(node, ast.Assign):
        said = _text(tree.body[tree.body.index(node) + 1])
        return "\n".join([_code(_lines(node, lines)), *([prose(said)] if said else [])])
    assert isinstance(node, Definition)
    documented = ast.get_docstring(node)
    if not documented:
        raise ValueError(f"{node.name} (line {node.lineno}) has no docstring")
    if isinstance(node, ast.FunctionDef):
        return "\n".join([_code(_signature(node, lines)), prose(documented)])
    decorators = [line for decorator in node.decorator_list for line in _lines(decorator, lines)]
    shown = [f"@{line.strip().removeprefix('@')}" for line in decorators] + _signature(node, lines)
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            shown += _lines(field, lines)
            shown += _lines(after, lines) if after is not None and _text(after) else []
        elif isinstance(field, ast.FunctionDef) and field.name == "__init__":
            shown += _signature(field, lines)
    parts = [_code(shown), prose(documented)]
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and ast.get_docstring(method):
            is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in method.decorator_list)
            signature = (["@property"] if is_property else []) + _dedented(_signature(method, lines))
            parts += [_code(signature), prose(ast.get_docstring(method) or "")]
    return "\n".join(parts)


def _signature(node: Definition, lines: list[str]) -> list[str]:
    """From `def` or `class` to the colon."""
    return lines[node.lineno - 1 : node.body[0].lineno - 1]


def _lines(node: ast.AST, lines: list[str]) -> list[str]:
    return lines[node.lineno - 1 : node.end_lineno]  # type: ignore[attr-defined]


def _text(node: ast.AST) -> str | None:
    """The text of a statement that is a string, as a docstring of a field is."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None


def _dedented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


def _code(lines: list[str]) -> str:
    text = "\n".join(line.rstrip() for line in lines if line.strip()).replace("  # fmt: skip", "")
    return f"```python\n{text}\n```\n"


def prose(docstring: str) -> str:
    """A docstring as Markdown: sections (`Args:`, `Raises:`) as lists, examples as code."""
    out: list[str] = []
    base: int | None = None  # the indent of a section's items
    section = ""
    for line in inspect.cleandoc(docstring).splitlines():
        indent = len(line) - len(line.lstrip())
        heading = re.fullmatch(r"(Args|Raises|Returns):", line)
        if heading:
            section, base = heading[1], None
            out += [f"{section}:", ""]
        elif section and indent:
            base = indent if base is None else base
            text = line.strip()
            if indent == base:
                text = re.sub(r"^([\w, ]+?):(?= |$)", r"`\1`:", text)
                out.append(f"- {_escaped(text)}")
            else:
                out.append(f"  {_escaped(text)}")
        else:
            section = "" if line else section
            out.append(line if indent >= 4 else _escaped(line))
    return "\n".join(out) + "\n"


def _escaped(text: str) -> str:
    """Characters that Markdown would read, but for what stands between backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*<])", r"\\\1", p) for p in pieces)


def _short(module: str) -> str:
    return module.removeprefix("seal_jax.")


def _title(module: str, name: str) -> str:
    return f"{_short(module)}.{name}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {sum(map(len, NAMES.values()))} names of {len(NAMES)} modules")
