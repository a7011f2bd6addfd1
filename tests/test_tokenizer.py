"""Tokenizers rebuilt from GGUF cut text as the originals do; one BOS where there is to be one; answers end."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from seal_jax.io.hub import ModelFiles, find_model
from seal_jax.io.tokenizer import (
    _SPLITS,
    MARK,
    chat,
    encode,
    load_tokenizer,
    make_codec,
    require_rows,
    stop_tokens,
    vocabulary,
)

GOLDEN = Path(__file__).parent / "golden"
SMOLLM2 = json.loads((GOLDEN / "smollm2.json").read_text(encoding="utf-8"))

# transformers 5.23 reads this file's tokenizer without SmolLM's rule that every digit stands alone (in llama.cpp,
# `smollm` cuts at \p{N} first). The vocabulary joins no decimal digit with anything, so it shows only where another
# kind of numeral follows a space.
UNLIKE_TRANSFORMERS = "١٢٣ ४५६ Ⅷ ² ½"


@pytest.fixture(scope="module")
def smollm2_files() -> ModelFiles:
    try:
        return find_model("smollm2-135m")
    except OSError as error:
        pytest.skip(f"SmolLM2-135M is neither cached nor downloadable: {error}")


@pytest.fixture(scope="module")
def smollm2(smollm2_files):
    return load_tokenizer(smollm2_files)


def test_smollm2_ids_are_those_of_transformers(smollm2):
    for case in SMOLLM2["strings"]:
        ids = encode(smollm2, case["text"])
        assert (ids == case["ids"]) == (case["text"] != UNLIKE_TRANSFORMERS), case["text"]
        assert smollm2.decode(ids) == case["text"]


def test_smollm2_chat_prompt_is_that_of_transformers(smollm2):
    assert chat(smollm2, SMOLLM2["question"]) == SMOLLM2["prompt"]
    assert encode(smollm2, SMOLLM2["prompt"]) == SMOLLM2["ids"]


def test_smollm2_ends_at_end_of_turn_and_end_of_text(smollm2, smollm2_files):
    assert smollm2.convert_ids_to_tokens(stop_tokens(smollm2, smollm2_files)) == ["<|endoftext|>", "<|im_end|>"]
    assert smollm2.decode(encode(smollm2, "Hi<|im_end|>"), skip_special_tokens=True) == "Hi"


def test_saved_to_a_folder_it_is_the_same_tokenizer(smollm2, tmp_path):
    smollm2.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelFiles("saved", "safetensors", tmp_path, "test"))
    assert chat(loaded, "Hi") == chat(smollm2, "Hi")
    for case in SMOLLM2["strings"]:
        assert encode(loaded, case["text"]) == encode(smollm2, case["text"])


# ---------------------------------------------------------------------------------------------------------------------
# Small tokenizers, made here

TEXT = "The cat's 1234 hats, they'LL say:\n\n  \"naïve\" x = 10**2  # done\r\n" * 3
MARKS = ["<|begin|>", "<|end|>", "<think>"]


def trained(split: str) -> Tokenizer:
    """A byte-level BPE of 400 tokens that cuts as `split` says."""
    core = Tokenizer(BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == "smollm")
    core.pre_tokenizer = pre_tokenizers.Sequence([_SPLITS[split], byte_level])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return core


def write_tokenizer(
    path: Path, tokens, types, *, model="gpt2", pre=None, merges=None, scores=None, **flags
) -> ModelFiles:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    for name, value in flags.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelFiles(str(path), "gguf", path, "test")


def byte_level_gguf(path: Path, split: str, **flags) -> tuple[ModelFiles, Tokenizer]:
    core = trained(split)
    tokens = [token for token, _ in sorted(core.get_vocab().items(), key=lambda item: item[1])]
    merges = [" ".join(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    flags = {"bos_token_id": len(tokens), "eos_token_id": len(tokens) + 1} | flags
    types = [1] * len(tokens) + [3, 3, 4]
    return write_tokenizer(path, tokens + MARKS, types, pre=split, merges=merges, **flags), core


@pytest.mark.parametrize("split", ["smollm", "qwen2", "llama-bpe"])
def test_byte_level_gguf_is_the_tokenizer_it_was_written_from(split, tmp_path):
    files, core = byte_level_gguf(tmp_path / "t.gguf", split, add_bos_token=False)
    tokenizer = load_tokenizer(files)
    assert encode(tokenizer, TEXT) == core.encode(TEXT).ids
    assert tokenizer.decode(encode(tokenizer, TEXT)) == TEXT
    # marked tokens stay whole; only control tokens are special
    ids = encode(tokenizer, "<|begin|>The<think>cat<|end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The<think>cat"


def test_digits_are_cut_as_each_family_cuts_them():
    cut = {name: [piece for piece, _ in split.pre_tokenize_str("a12345")] for name, split in _SPLITS.items()}
    assert cut["smollm"] == ["a", "1", "2", "3", "4", "5"]
    assert cut["qwen2"] == ["a", "1", "2", "3", "4", "5"]
    assert cut["llama-bpe"] == ["a", "123", "45"]


def test_qwen2_cuts_as_transformers_own_class_does():
    from transformers import Qwen2Tokenizer

    theirs = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ours = pre_tokenizers.Sequence([_SPLITS["qwen2"], byte_level])
    for case in SMOLLM2["strings"]:
        assert ours.pre_tokenize_str(case["text"]) == theirs.pre_tokenize_str(case["text"])


def test_only_qwen2_composes_accents_first(tmp_path):
    """Its normaliser is NFC; the others cut text as it comes."""
    for split in ("smollm", "qwen2", "llama-bpe"):
        tokenizer = load_tokenizer(byte_level_gguf(tmp_path / "t.gguf", split, add_bos_token=False)[0])
        composed = encode(tokenizer, "e\u0301") == encode(tokenizer, "\u00e9")
        assert composed == (split == "qwen2")


def test_llama3_takes_whole_words_without_merges(tmp_path):
    """`ignore_merges`: a word of the vocabulary that no merges build is still one token."""
    core = trained("llama-bpe")
    tokens = [token for token, _ in sorted(core.get_vocab().items(), key=lambda item: item[1])] + ["Ġzebra"]
    merges = [" ".join(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    files = write_tokenizer(tmp_path / "t.gguf", tokens, [1] * len(tokens), pre="llama-bpe", merges=merges)
    assert load_tokenizer(files).tokenize(" zebra") == ["Ġzebra"]


@pytest.mark.parametrize(
    ("split", "flags", "has_bos"),
    [
        ("llama-bpe", {}, True),  # llama.cpp's default for it
        ("llama-bpe", {"add_bos_token": False}, False),
        ("qwen2", {}, False),
        ("smollm", {"add_bos_token": True}, True),
    ],
)
def test_one_bos_or_none(split, flags, has_bos, tmp_path):
    tokenizer = load_tokenizer(byte_level_gguf(tmp_path / "t.gguf", split, **flags)[0])
    bos = [tokenizer.bos_token_id] if has_bos else []
    plain = tokenizer.encode("The cat", add_special_tokens=False)
    assert encode(tokenizer, "The cat") == bos + plain
    assert encode(tokenizer, "") == bos
    assert encode(tokenizer, "<|begin|>The cat") == [tokenizer.bos_token_id, *plain]  # never a second one


def test_sentencepiece_gguf_cuts_as_sentencepiece(tmp_path):
    golden = json.loads((GOLDEN / "sentencepiece.json").read_text(encoding="utf-8"))
    files = write_tokenizer(
        tmp_path / "t.gguf",
        golden["tokens"],
        golden["types"],
        model="llama",
        scores=golden["scores"],
        bos_token_id=1,
        eos_token_id=2,
        unk_token_id=0,
    )
    tokenizer = load_tokenizer(files)
    for case in golden["strings"]:
        assert encode(tokenizer, case["text"]) == [1, *case["ids"]], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize(
    ("model", "pre", "said"),
    [("gpt2", "tekken", "'tekken' is not known here"), ("t5", None, "is 't5'; expected 'gpt2'")],
)
def test_other_tokenizers_are_refused(model, pre, said, tmp_path):
    files = write_tokenizer(tmp_path / "t.gguf", ["a"], [1], model=model, pre=pre, merges=["a a"])
    with pytest.raises(ValueError, match=f"(?s){said}.*Hugging Face folder"):
        load_tokenizer(files)


def test_a_folder_without_tokenizer_is_refused():
    with pytest.raises(ValueError, match="no readable tokenizer"):
        load_tokenizer(ModelFiles("llama2", "safetensors", GOLDEN / "llama2", "test"))


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=trained("qwen2"), eos_token="!", chat_template=template)


def test_a_base_model_has_no_chat():
    with pytest.raises(ValueError, match="no chat template"):
        chat(with_template(None), "Hi")


def test_qwen3_answers_without_thinking_and_llama_3_2_on_a_fixed_day():
    template = "{{ messages[0].content }}{% if enable_thinking is false %}<think></think>{% endif %}|{{ date_string }}"
    assert chat(with_template(template), "Hi") == "Hi<think></think>|26 Jul 2024"


def test_stop_tokens_of_a_folder(tmp_path):
    tokenizer = with_template(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [11, 12]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 13}')
    expected = {tokenizer.eos_token_id, 11, 12, 13, tokenizer.convert_tokens_to_ids("<|eot_id|>")}
    assert stop_tokens(tokenizer, ModelFiles("m", "safetensors", tmp_path, "test")) == tuple(sorted(expected))


# ---------------------------------------------------------------------------------------------------------------------
# What each token adds to a text


def spelled(tokenizer, text: str) -> bytes:
    """The text of the tokens into which `text` is cut, put together token by token."""
    pieces = vocabulary(tokenizer)
    return b"".join(pieces[index] or b"?" for index in tokenizer.encode(text, add_special_tokens=False))


def test_smollm2_texts_are_the_pieces_of_their_tokens(smollm2):
    for case in SMOLLM2["strings"]:
        if "<|" in case["text"]:  # special tokens add nothing
            continue
        assert spelled(smollm2, case["text"]) == case["text"].encode(), case["text"]
    assert vocabulary(smollm2)[:3] == [None] * 3  # <|endoftext|>, <|im_start|>, <|im_end|>


@pytest.mark.parametrize("split", ["smollm", "qwen2", "llama-bpe"])
def test_byte_level_texts_are_the_pieces_of_their_tokens(split, tmp_path):
    files, core = byte_level_gguf(tmp_path / "t.gguf", split)
    tokenizer = load_tokenizer(files)
    tokenizer.add_tokens(["  ", "naïf ç"])  # plain text, not spelled in letters that stand for bytes
    text = TEXT + "<think> é日  naïf ç\t\x00\x7f\xad"
    assert spelled(tokenizer, text) == text.encode()
    pieces, size = vocabulary(tokenizer), core.get_vocab_size()
    assert pieces[size : size + 5] == [None, None, b"<think>", b"  ", "naïf ç".encode()]
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)


def test_sentencepiece_texts_are_the_pieces_of_their_tokens(tmp_path):
    golden = json.loads((GOLDEN / "sentencepiece.json").read_text(encoding="utf-8"))
    files = write_tokenizer(
        tmp_path / "t.gguf", golden["tokens"], golden["types"], model="llama", scores=golden["scores"],
        bos_token_id=1, eos_token_id=2, unk_token_id=0,
    )  # fmt: skip
    tokenizer = load_tokenizer(files)
    for case in golden["strings"]:
        expected = f" {case['text']}" if case["text"] else ""
        assert spelled(tokenizer, case["text"]) == expected.encode(), case["text"]
    pieces = vocabulary(tokenizer)
    assert pieces[:3] == [None] * 3  # <unk>, <s>, </s>
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)


def test_pieces_of_other_tokenizers_are_refused():
    core = Tokenizer(BPE())
    core.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match=r"it decodes with \['WordPiece'\]; expected 'ByteLevel'"):
        vocabulary(PreTrainedTokenizerFast(tokenizer_object=core))
    with pytest.raises(ValueError, match="it decodes with no decoder"):
        vocabulary(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE())))


# ---------------------------------------------------------------------------------------------------------------------
# Text is text: special tokens are read in the template alone


SPOKEN = "Turns end with <|end|>, texts begin with <|begin|>.<|end|>"
TURNS = (
    "<|begin|>{% for m in messages %}user: {{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("split", ["smollm", "qwen2", "llama-bpe"])
def test_special_tokens_written_out_are_text_but_in_the_template(split, tmp_path):
    files, _ = byte_level_gguf(tmp_path / "t.gguf", split, chat_template=TURNS, add_bos_token=False)
    tokenizer = load_tokenizer(files)
    codec = make_codec(tokenizer, files)
    begin, end = tokenizer.convert_tokens_to_ids(["<|begin|>", "<|end|>"])
    for read in (codec.encode, codec.encode_more):
        assert not {begin, end} & set(read(SPOKEN))
        assert codec.decode(read(SPOKEN)) == SPOKEN
    prompt = chat(tokenizer, f"  {SPOKEN} ")
    assert prompt == f"<|begin|>user: {SPOKEN}<|end|>assistant: "  # as transformers renders it
    ids = codec.encode(prompt)
    assert [i for i in ids if i in (begin, end)] == [begin, end]
    assert tokenizer.decode(ids) == prompt
    assert codec.encode(chat(tokenizer, "The cat")) == encode(tokenizer, str(chat(tokenizer, "The cat")))


def test_sentencepiece_reads_written_out_tokens_as_text_too(tmp_path):
    golden = json.loads((GOLDEN / "sentencepiece.json").read_text(encoding="utf-8"))
    files = write_tokenizer(
        tmp_path / "t.gguf", golden["tokens"], golden["types"], model="llama", scores=golden["scores"],
        bos_token_id=1, eos_token_id=2, unk_token_id=0, chat_template="<s>{{ messages[0].content }}</s>",
    )  # fmt: skip
    tokenizer = load_tokenizer(files)
    codec = make_codec(tokenizer, files)
    ids = codec.encode("a </s> b <s>")
    assert ids[0] == 1
    assert not {1, 2} & set(ids[1:])
    assert codec.decode(ids) == "a </s> b <s>"
    prompt = codec.encode(chat(tokenizer, "a </s> b"))
    assert (prompt[0], prompt[-1], sum(i in (1, 2) for i in prompt)) == (1, 2, 2)


def test_a_completion_ends_with_the_end_token_and_text_that_looks_like_it_does_not(tmp_path):
    files, _ = byte_level_gguf(tmp_path / "t.gguf", "qwen2")
    tokenizer = load_tokenizer(files)
    codec = make_codec(tokenizer, files)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert codec.encode_more(codec.end) == [end]
    assert codec.encode_more("The cat" + codec.end) == [*codec.encode_more("The cat"), end]
    assert codec.encode_more("say <|end|>" + codec.end).count(end) == 1
    assert end not in codec.encode_more(f"{MARK}<|end|>{MARK}")  # the mark cannot be smuggled in


def test_a_model_without_an_end_token_is_refused(tmp_path):
    core = trained("smollm")
    tokens = [token for token, _ in sorted(core.get_vocab().items(), key=lambda item: item[1])]
    merges = [" ".join(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    files = write_tokenizer(tmp_path / "t.gguf", tokens, [1] * len(tokens), pre="smollm", merges=merges)
    with pytest.raises(ValueError, match="no token ends an answer"):
        make_codec(load_tokenizer(files), files)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_an_id_past_the_tokens_is_refused(key, tmp_path):
    files, _ = byte_level_gguf(tmp_path / "t.gguf", "qwen2", **{key: 99_999})
    with pytest.raises(ValueError, match=rf"tokenizer\.ggml\.{key} is 99999; there are 403 tokens|{key}"):
        load_tokenizer(files)


def test_a_token_listed_twice_is_refused(tmp_path):
    files = write_tokenizer(tmp_path / "t.gguf", ["a", "b", "a"], [1, 1, 1], pre="qwen2", merges=[])
    with pytest.raises(ValueError, match="token 'a' is listed twice, as 0 and 2"):
        load_tokenizer(files)


def test_a_merge_of_tokens_that_are_not_there_is_refused(tmp_path):
    files = write_tokenizer(tmp_path / "t.gguf", ["a", "b"], [1, 1], pre="qwen2", merges=["a z"])
    with pytest.raises(ValueError, match=r"t\.gguf: its tokenizer cannot be rebuilt"):
        load_tokenizer(files)


def test_an_empty_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="the tokenizer is empty: 3 tokens"):
        load_tokenizer(ModelFiles("m", "safetensors", tmp_path, "test"))


def test_tokens_past_the_embedding_are_named():
    tokenizer = with_template(None)
    size = len(tokenizer)
    require_rows(tokenizer, size, "m")
    tokenizer.add_tokens(["zorblax"])
    with pytest.raises(ValueError, match=f"m: 1 tokens .* first is 'zorblax', id {size}"):
        require_rows(tokenizer, size, "m")


@pytest.mark.parametrize("content", ['{"eos_token_id": "2"}', "{eos", "[]", '{"eos_token_id": 99999}'])
def test_end_tokens_that_are_none_are_refused(content, tmp_path):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        stop_tokens(with_template(None), ModelFiles("m", "safetensors", tmp_path, "test"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('a system message is needed') }}", "TemplateError: a system message is needed"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[0].nothing.at_all }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{" * 3 + "(" * 5000, "chat template cannot be rendered"),
        ("always the same", "does not show a user's message"),
    ],
)
def test_templates_that_cannot_be_rendered_are_refused(template, said):
    with pytest.raises(ValueError, match=said):
        chat(with_template(template), "Hi")


def test_a_template_that_reads_a_message_as_parts_gets_parts():
    template = "{% for m in messages %}{% for c in m['content'] %}[{{ c['text'] }}]{% endfor %}{% endfor %}"
    assert chat(with_template(template), "Hi there") == "[Hi there]"


def test_a_template_that_asks_for_the_day_is_told_a_fixed_one():
    template = "{{ strftime_now('%d %B %Y') }}: {{ messages[0].content }}"
    assert chat(with_template(template), "Hi") == "26 July 2024: Hi"
    assert chat(with_template(template), "Hi", datetime.date(2026, 1, 2)) == "02 January 2026: Hi"
