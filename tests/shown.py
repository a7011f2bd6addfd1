"""Runs every command that README and docs show, one after another, as a user types it but made small.

    python -m tests.shown [WORD]      # those that hold WORD; `make commands`, and CI, run all

Made small: the preset becomes `smoke`, the model a random one of two layers, counts become ones and twos (`SMALLER`),
files and earlier runs are made beforehand (`made`), and the endpoint is a server here. All other options stay. The
commands of `AS_SHOWN` are run as they stand, on SmolLM2. Commands that become the same are run once. Each is a process
of its own in a scratch folder, as many at a time as there are cores; they share one cache of compiled programs.
Programs in Python (```python) are run as well, on that small model.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from seal_jax.domains.passages import INVENTED
from tests import tiny
from tests.judge_server import KEY, JudgeServer

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITHOUT_PRESETS = {"benchmark", "grade", "library", "parity", "report"}
READ_A_LIBRARY = ("ask", "chat", "export", "list", "remove")  # of the subcommands of `library`
AS_SHOWN = {"experiments.squad smoke"}
LEFT_OUT = {  # what is in a command that cannot be run here: why
    "experiments.parity": "left to make parity: it wants torch",
    "experiments.benchmark compile": "left to make aot: it wants a compiler of another device",
    "--peer skyrl-tx": "it wants another environment beside this one",
}
SMALLER = {  # options of a number: the most they are given here
    "--adapters": 2, "--edits": 2, "--epochs": 1, "--evaluation.passages": 2, "--compute.chunk": 2, "--inner.epochs": 1,
    "--limit": 4, "--outer.passages": 2, "--outer.samples": 2, "--outer.validation": 1, "--passages": 2,
    "--questions": 4, "--random": 2, "--repeats": 1, "--samples": 2, "--seeds": 2,
    "--streams": 2, "--stream-length": 2,
}  # fmt: skip
MODELS = {"--model", "--writer", "--grader.model"}
# Small programs take longer to compile than to run: these settings compile the same programs with less effort.
COMPILED_FAST = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_cpu_use_fusion_emitters=false",
}


def commands() -> list[str]:
    """Everything from `experiments.NAME` to the end of a code span, or of a line in a block of code."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`]+)`", re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for piece in (*(line for block in blocks for line in block.splitlines()), *spans):
            match = re.match(r"(?:python -m )?(experiments\.\w+(?: [^#]*)?)", " ".join(piece.split()))
            if match:
                found.append(match[1].strip())
    return sorted(set(found))


def programs() -> dict[str, str]:
    """The programs in Python, by where they are shown; those of examples/ have a test of their own."""
    examples = {path.read_text(encoding="utf-8").strip() for path in (ROOT / "examples").glob("*.py")}
    found = {}
    for path in DOCUMENTS:
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found |= {
            f"{path.relative_to(ROOT)}: program {n}": text
            for n, text in enumerate(blocks, 1)
            if text.strip() not in examples
        }
    return found


def small(command: str, number: int, model: str, endpoint: str) -> list[str]:
    """The words of a command, made small; `number` names its run folder."""
    if command in AS_SHOWN:
        return shlex.split(command)
    name, *words = shlex.split(command)
    module = name.removeprefix("experiments.")
    to_endpoint = "endpoint" in words
    for i, (option, value) in enumerate(itertools.pairwise(words), 1):
        if option in MODELS and not (option == "--grader.model" and to_endpoint):
            words[i] = model
        elif option in SMALLER and value.isdigit():
            words[i] = str(min(int(value), SMALLER[option]))
    if "--budgets" in words:
        start = words.index("--budgets") + 1
        given = len(list(itertools.takewhile(str.isdigit, words[start:])))
        words[start : start + given] = ["1", "2"][:given]
    if module == "library" and words[0] in READ_A_LIBRARY:
        words[1] = f"runs/library-{number}"
    elif module == "library" or (module == "adapt" and words[0].endswith("/")):
        words += [option for option in ("--library", f"runs/shown-{number}") if "--library" not in words]
        words += ["--notes.sampling.max-tokens", "16", "--inner.epochs", "1"]
        words += [] if "--model" in words else ["--model", model]
    elif module == "benchmark":
        if "--dry-run" not in words and "--random" in words:
            words[words.index("--random") + 1] = "tiny"
        if words[0] == "bases" and "--model" not in words:
            words += ["--model", model]
        trains = words[0] in ("inner", "scaling") or words[0].startswith("--")
        for option in ("--adapters", "--epochs", "--repeats", *(["--edits"] if trains else [])):
            words += [] if option in words or "--dry-run" in words else [option, str(SMALLER[option])]
        if words[0] == "scaling":
            words += shlex.split("--over-adapters 1 2 --over-tokens 16 32 --over-models tiny --at-adapters 2 --steps 1")
        if "--peer" in words and not has_torch():
            start = end = words.index("--peer")
            while end + 1 < len(words) and not words[end + 1].startswith("--"):
                end += 1
            del words[start : end + 1]
    elif module not in WITHOUT_PRESETS:
        presets = importlib.import_module(name).EXPERIMENT.presets
        words = ["smoke", *(words[1:] if words and words[0] in presets else words)]
        words += [] if "--model" in words else ["--model", model]
        words += [] if "--run-folder" in words or "--dry-run" in words else ["--run-folder", f"runs/shown-{number}"]
        if module == "arc":  # a tokenizer that spells; few cells, but as many as the smallest tasks have
            words += ["--sampling.max-tokens", "256", "--max-cells", "750" if "arc-agi-2" in words else "200"]
    if module in ("rewards", "credit") and not {"--prompt", "--edits"} & set(words):
        words += ["--prompt", "implications"]  # of facts, a random model's are all dropped as not about the passage
    words += ["--grader.base-url", endpoint] if to_endpoint else []
    return [name, *words]


def same_when_small(commands: Iterable[str]) -> list[list[str]]:
    """The commands in groups that are the same once made small: neither the folder nor the order of options matters."""
    groups: dict[str, list[str]] = {}
    for command in commands:
        options = re.split(r" (?=--)", shlex.join(small(command, 0, "MODEL", "ENDPOINT")))
        groups.setdefault(" ".join([options[0], *sorted(options[1:])]), []).append(command)
    return list(groups.values())


def has_torch() -> bool:
    """Whether the extra `peers` is installed."""
    return importlib.util.find_spec("torch") is not None


def made(folder: Path) -> str:
    """Writes what the commands name into `folder`: a model, texts, recorded self-edits and answers."""
    passages = json.loads(INVENTED.read_text(encoding="utf-8"))
    lines = [[sentence.strip() for sentence in passage["context"].split(". ")] for passage in passages]
    for name in ("base", "iter2", "gpt4_1", "A", "B", "other"):
        edits = [
            {**passage, "completions": ["\n".join(own[k:]) for k in range(3)]}
            for passage, own in zip(passages, lines, strict=True)
        ]
        write(folder / f"{name}.json", edits)
    write(folder / "mine.json", passages[:12])
    questions = [question for passage in passages[:2] for question in passage["questions"]]
    write(folder / "exam.json", questions)
    rows = [
        {"question": q["question"], "gold": q["answer"], "answer": f"It is {q['answer']}.", "correct": n % 3 > 0}
        for n, q in enumerate(question for passage in passages for question in passage["questions"])
    ]
    for name in ("FILE", "answers.jsonl", "graded_answers_all.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "notes").mkdir()
    for path, n in ((folder / "notes.md", 0), (folder / "notes" / "lamp.md", 0), (folder / "notes" / "ferry.md", 2)):
        path.write_text("# Isle\n\n" + passages[n]["context"] + "\n", encoding="utf-8")
    (folder / "report.pdf").write_bytes(pdf(passages[1]["context"]))
    shutil.copytree(ROOT / "examples", folder / "examples")
    return str(tiny.model_folder(folder / "model", context_length=4096))


def pdf(*pages: str) -> bytes:
    """The least PDF that shows these lines; one that begins with `# ` is a heading, in larger type."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>"]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects += [f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for n, page in enumerate(pages):
        lines = [f"/F1 {16 if line[:2] == '# ' else 12} Tf ({line.removeprefix('# ')}) Tj" for line in page.split("\n")]
        stream = f"BT 14 TL 72 720 Td {' T* '.join(lines)} ET" if page else ""
        shape = "/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>"
        objects.append(f"<</Type/Page{shape}/Contents {5 + 2 * n} 0 R>>")
        objects.append(f"<</Length {len(stream)}>>\nstream\n{stream}\nendstream")
    content, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(content))
        content += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<</Size {len(objects) + 1}/Root 1 0 R>>\n"
    return content + f"{end}startxref\n{len(content)}\n%%EOF\n".encode()


def write(path: Path, rows: list) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


class Ran(NamedTuple):
    """A command that has ended."""

    name: str
    words: list[str]  # of Python's command line
    seconds: float
    failed: bool
    output: str


def main(arguments: Sequence[str]) -> int:
    """Runs them; the exit status is 1 if one failed."""
    chosen = same_when_small(command for command in commands() if all(word in command for word in arguments))
    own = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    own |= {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    finished: list[Ran] = []
    cores = os.cpu_count() or 1
    with (
        tempfile.TemporaryDirectory(prefix="shown-") as scratch,
        JudgeServer() as server,
        ThreadPoolExecutor(cores) as pool,
    ):
        folder = Path(scratch)
        model = made(folder)
        own |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}

        def run(name: str, words: list[str], settings: dict[str, str]) -> Ran:
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, *words], cwd=folder, env=own | settings, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            return Ran(name, words, time.monotonic() - started, done.returncode != 0, done.stdout)

        def run_all(named: Iterable[tuple[str, list[str]]]) -> None:
            """Returns once all have ended; shows each as it ends."""
            waiting = [
                pool.submit(run, name, words, {} if name in AS_SHOWN else COMPILED_FAST) for name, words in named
            ]
            for future in as_completed(waiting):
                ran = future.result()
                finished.append(ran)
                print(f"{'failed' if ran.failed else 'ran':6} {ran.seconds:4.0f} s  {ran.name}", flush=True)
                if ran.failed:
                    last = ran.output.splitlines()[-15:]
                    print(f"  as: python {shlex.join(ran.words)}", *last, sep="\n  ", flush=True)

        first = ["experiments.squad", "smoke", "--model", model, "--run-folder", "runs/squad-demo"]
        learn = ["experiments.library", "add", "notes/", "--library", "runs/notes"]
        run_all(
            [
                ("a run for the others to read", ["-m", *first]),
                ("a library for the others to read", ["-m", *small(shlex.join(learn), 0, model, server.url)]),
            ]
        )
        for name in ("mine", "one", "two", "squad-rewrite", "squad-paper", "cpt-paper-200"):
            shutil.copytree(folder / "runs" / "squad-demo", folder / "runs" / name)
        ungraded = {"question": "Who?", "gold": "Edda", "answer": "Edda"}
        (folder / "runs" / "squad-demo" / "ungraded.jsonl").write_text(json.dumps(ungraded) + "\n", encoding="utf-8")
        words = {}
        for number, (command, *others) in enumerate(chosen):
            reasons = [reason for part, reason in LEFT_OUT.items() if part in command]
            if reasons:
                print(f"skipped, {reasons[0]}: {command}", flush=True)
            else:
                words["; ".join([command, *others])] = ["-m", *small(command, number, model, server.url)]
                if command.split()[0] == "experiments.library" and command.split()[1] in READ_A_LIBRARY:
                    shutil.copytree(folder / "runs" / "notes", folder / "runs" / f"library-{number}")
        run_all(words.items())
        programs_by_file = {}
        for number, (name, text) in enumerate(programs().items()):
            if all(word in name for word in arguments):
                (folder / f"program_{number}.py").write_text(text.replace("smollm2-135m", model), encoding="utf-8")
                programs_by_file[name] = [f"program_{number}.py"]
        run_all(programs_by_file.items())
    failed = [ran.name for ran in finished if ran.failed]
    print(f"{len(finished) - len(failed)} of {len(finished)} ran", *(f"failed: {name}" for name in failed), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
