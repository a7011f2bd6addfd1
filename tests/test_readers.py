"""Every reader of files ends, on whatever it is given, in a result or in an error that says what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from docs import fields as docs_fields
from experiments import ablations
from experiments import squad as squad_experiment
from seal_jax.analysis import grid
from seal_jax.domains import document, passages, squad
from seal_jax.domains.arc import tasks
from seal_jax.domains.records import load_toml
from seal_jax.io import gguf, peft, tokenizer, weights
from seal_jax.io.hub import ModelFiles
from seal_jax.run import settings
from seal_jax.run.journal import RunFolder, read_run
from seal_jax.types import Compute
from tests import tiny

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[1] / "docs"
SAID = (ValueError, OSError)  # what the command line prints as one sentence

PIECES = [
    *(b"null", b"true", b"[]", b"{}", b"-1", b"0", b"1e999", b"NaN", b'""', b'"x"', b"2147483648", b"9" * 5000),
    *(b"[" * 2000, b'{"a":' * 2000, b"\xff", b"\0", b"\xef\xbb\xbf", "\ud7ff\ufdd0".encode(), b"\r", b"<|im_end|>"),
    b"a.a." * 50,
]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to three changes: bytes, a piece put in or in place of a JSON value, a part cut out, doubled or cut off."""
    for _ in range(draw.randint(1, 3)):
        a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        values = [i for i in range(a, min(len(content), a + 200)) if content[i : i + 2] in (b": ", b":\n", b'":')]
        match draw.randrange(7):
            case 0:
                content = content[:a] + bytes([draw.randrange(256)]) + content[a + 1 :]
            case 1:
                content = content[:a] + draw.choice(PIECES) + content[a:]
            case 2 if values:  # in place of a value
                end = next(
                    (i for i in range(values[0] + 2, len(content)) if content[i : i + 1] in b",}\n"), len(content)
                )
                content = content[: values[0] + 1] + draw.choice(PIECES) + content[end:]
            case 3:
                content = content[:a] + content[min(b, a + draw.randint(1, 40)) :]
            case 4:
                content = content[:b] + content[a : min(b, a + 300)] + content[b:]
            case 5:
                content = content[:b]
            case _:
                content = content[:a] + draw.randbytes(8) + content[a + 8 :]
    return content


def readers(folder: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """For each reader: a real file, which it reads without complaint, and how."""
    model = tiny.model_folder(folder / "model")
    for name in ("qwen2", "llama32"):
        shutil.copytree(GOLDEN / name, folder / name)
    shutil.copytree(GOLDEN / "peft" / "llama32_qv", folder / "adapter")
    shape = weights.read_config(folder / "llama32" / "config.json")
    made = {
        "passages.json": json.dumps(
            [{"title": "A", "context": "B c.", "questions": [{"question": "d?", "answer": "e"}], "completions": ["f"]}]
        ),
        "grid.json": json.dumps(
            {"train": [{"input": [[0, 1]], "output": [[1]]}], "test": [{"input": [[2]], "output": [[3]]}]}
        ),
        "run/self_edits.jsonl": json.dumps(
            {"stage": "self_edits_round_1", "passage": "p", "title": "A", "context": "B", "completion": "c",
             "answers": [{"question": "q", "gold": "g"}]}
        ) + "\n",
        "notes.md": "# Title\n\nSome *text*, a [link](x) and\n\n- items\n- more\n\n| a | b |\n|---|---|\n| c | d |\n",
    }  # fmt: skip
    for name, text in made.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(squad.PROMPT_FOLDER / "implications.toml", folder / "prompt.toml")
    shutil.copy(ablations.GRIDS / "paper.toml", folder / "grid.toml")
    run, known_fields = folder / "kept", grid.fields(ablations.Settings)
    settings.write(folder, "squad", squad_experiment.DEMO, Compute())
    with contextlib.closing(RunFolder(run, {"seed": 0})) as kept:
        for name in ("round 1/a", "round 1/b"):
            kept.once(name, lambda: {"accuracy": 0.5, "text": "é"})
    _write_gguf(folder / "m.gguf")
    files = ModelFiles("m", "safetensors", model, "test")

    def of_gguf() -> object:
        file = ModelFiles("m", "gguf", folder / "m.gguf", "test")
        gguf.read_config(gguf.open_gguf(file.path), file.path)
        return tokenizer.make_codec(tokenizer.load_tokenizer(file), file)

    def of_tokenizer() -> object:
        text = tokenizer.load_tokenizer(files)
        return tokenizer.make_codec(text, files).encode("a <end> b"), tokenizer.chat(text, "hello")

    def of_weights() -> object:
        return weights.load_model(ModelFiles("q", "safetensors", folder / "qwen2", "test"))

    def of_document() -> object:
        return document.passages(document.read_document(folder / "notes.md"), count=lambda t: len(t.split()), budget=50)

    def of_grid() -> object:
        file = folder / "grid.toml"
        return grid.read_table(load_toml(file.read_bytes(), "grid", grid.FORM), file, known_fields)

    return {
        "config": (folder / "llama32" / "config.json", lambda: weights.read_config(folder / "llama32" / "config.json")),
        "index": (folder / "qwen2" / "model.safetensors.index.json", of_weights),
        "safetensors": (folder / "qwen2" / "model-00002-of-00002.safetensors", of_weights),
        "gguf": (folder / "m.gguf", of_gguf),
        "adapter": (folder / "adapter" / peft.CONFIG, lambda: peft.load_peft(folder / "adapter", shape)),
        "tokenizer config": (model / "tokenizer_config.json", of_tokenizer),
        "passages": (folder / "passages.json", lambda: passages.load_passages(str(folder / "passages.json"), "train")),
        "self-edits": (folder / "run" / "self_edits.jsonl", lambda: passages.load_recorded(folder / "run")),
        "arc": (folder / "grid.json", lambda: tasks.load_tasks(str(folder / "grid.json"), "training")),
        "prompt": (folder / "prompt.toml", lambda: squad.load_prompts(folder / "prompt.toml", "chat")),
        "document": (folder / "notes.md", of_document),
        "grid": (folder / "grid.toml", lambda: of_grid()),
        "settings": (folder / settings.FILE, lambda: settings.read(folder / settings.FILE, "squad")),
        "journal": (run / "journal.jsonl", lambda: read_run(run)),
        "config of a run": (run / "config.json", lambda: read_run(run)),
    }  # fmt: skip


def _write_gguf(path: Path) -> None:
    from tests.test_weights import write_gguf

    write_gguf(path, "llama32", metadata={"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"})
    # tokens are lists, which that writer has no word for
    import gguf as package

    reader = package.GGUFReader(path)
    writer = package.GGUFWriter(path.with_suffix(".new"), "llama")
    for field in list(reader.fields.values()):
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_token_list([*"abcdefgh", "<end>"])
    writer.add_token_types([1] * 8 + [3])
    writer.add_token_merges([])
    writer.add_eos_token_id(8)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


NAMES = (
    *("config", "index", "safetensors", "gguf", "adapter", "tokenizer config"),
    *("passages", "self-edits", "arc", "prompt", "document", "grid", "settings", "journal", "config of a run"),
)
SLOW = ("tokenizer config", "index", "safetensors")  # whose readers load a model or a tokenizer


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return readers(tmp_path_factory.mktemp("readers"))


def fuzz(file: Path, read: Callable[[], object], count: int, seed: int) -> int:
    """How many of `count` mutated files were refused; any other end than a result or a sentence is raised."""
    content, refused = file.read_bytes(), 0
    try:
        for n in range(count):
            changed = mutated(content, random.Random(f"{file.name} {seed} {n}"))
            file.write_bytes(changed)
            try:
                read()
            except SAID:
                refused += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}, input {n} of {file.name}: {changed[:300]!r}") from error
    finally:
        file.write_bytes(content)
    return refused


@pytest.mark.parametrize("name", NAMES)
def test_changed_files_are_read_or_refused(name, known):
    file, read = known[name]
    read()
    assert fuzz(file, read, 30 if name in SLOW else 250, seed=0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_files_are_read_or_refused(name, known):
    """SEAL_FUZZ is how many of each; above 10,000, of those whose readers load a model or a tokenizer a tenth."""
    many = int(os.environ.get("SEAL_FUZZ", "10000"))
    assert fuzz(*known[name], max(many // 10, min(many, 10_000)) if name in SLOW else many, seed=1) > 0


def test_the_table_of_fields_is_what_its_command_prints():
    assert (DOCS / "fields.md").read_text(encoding="utf-8") == docs_fields.page(), (
        "out of date: python -m docs.fields > docs/fields.md"
    )


def test_a_key_of_many_parts_is_refused_before_it_takes_memory(tmp_path):
    file = tmp_path / "prompt.toml"
    file.write_text("a." * 20_000 + "a = 1")
    with pytest.raises(ValueError, match="a key of many parts"):
        squad.load_prompts(file, "chat")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["[" * 80_000, "![" * 40_000, "[" * 40_000 + "]" * 40_000, "a [b](c) " * 20_000])
def test_a_paragraph_of_brackets_takes_no_longer_than_another(text):
    assert document.parse(text, name="x", markdown=True).words > 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("line", ["word", "- a", "    a"])
def test_a_text_of_many_short_lines_is_cut_in_time_in_proportion(line):
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text.split())

    read = document.parse(f"{line}\n" * 20_000, name="x", markdown=False)
    found = document.passages(read, count=count, budget=64)
    assert found
    assert all(len(passage.context.split()) <= 64 for passage in found)
    assert counted < 200 * len(line) * 20_000


def test_the_references_filtered_files_are_read_with_their_solutions_beside_them(tmp_path):
    name = "arc-agi_training_{}_filtered_1B_training_set.json"
    pairs = [{"input": [[1]], "output": [[2]]}]
    (tmp_path / name.format("challenges")).write_text(json.dumps({"t": {"train": pairs, "test": [{"input": [[3]]}]}}))
    (tmp_path / name.format("solutions")).write_text(json.dumps({"t": [[[4]]]}))
    for source in (tmp_path, tmp_path / name.format("challenges")):
        (task,) = tasks.load_tasks(str(source), "training")
        assert task.test[0].output.tolist() == [[4]]
