"""Text to token ids and back: tokenizers of Hugging Face folders and of GGUF files, chat templates, stop tokens.

transformers reads a GGUF's tokenizer only with torch installed, so it is rebuilt here from the tokens and merges in the
file's metadata.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from seal_jax.domains import records
from seal_jax.io import fields, gguf
from seal_jax.io.fields import TOKENIZER, TokenizerFields
from seal_jax.io.hub import ModelFiles
from seal_jax.types import Codec

if TYPE_CHECKING:  # imported where a tokenizer is read: transformers takes half a second, which `--help` need not wait
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# How text is cut before byte pairs are merged, from each model's own tokenizer.json. llama.cpp's names for them.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = _QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS = {
    "smollm": pre_tokenizers.Digits(individual_digits=True),
    "qwen2": pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
    "llama-bpe": pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"),
}
_SPLIT_NAMES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}

_NONE = (-1, 2**32 - 1)  # how an id says that there is none
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # llama.cpp's token types

# What ends an answer, in whichever family; only those that are in the vocabulary as one token count.
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>")


MARK = "\ufdd0"  # around a special token that is meant: a code point that no text has (Unicode: for internal use)
_MESSAGE = "\ufdd1message\ufdd1"  # stands for the message while a template is looked at
_TODAY = re.compile(r"""strftime_now\(\s*(['"])([^'"\\]*)\1\s*\)""")
DAY = datetime.date(2024, 7, 26)  # today, to a template that asks: a prompt must not change with the day


class Marked(str):
    """A text that knows which of its pieces may hold special tokens: what a chat template wrote, and the token that
    ends a completion. What is put into a template may not, nor may any other text: there `<|im_end|>` is words.
    """

    pieces: tuple[tuple[str, bool], ...]  # a text, and whether special tokens are read in it

    def __new__(cls, *pieces: tuple[str, bool]) -> Marked:
        made = super().__new__(cls, "".join(text for text, _ in pieces))
        made.pieces = pieces
        return made

    def __add__(self, other: str) -> Marked:
        return Marked(*self.pieces, *_pieces(other))

    def __radd__(self, other: str) -> Marked:
        return Marked(*_pieces(other), *self.pieces)


def _pieces(text: str) -> tuple[tuple[str, bool], ...]:
    return text.pieces if isinstance(text, Marked) else ((text, False),)


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """The model's tokenizer with its special tokens and chat template. Code from a repository is never run.

    Raises ValueError where there is none, where it holds no tokens, or where a GGUF's is of a kind not rebuilt here.
    """
    if files.kind == "gguf":
        return _from_gguf(files.path)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(files.path, trust_remote_code=False, local_files_only=True)
        words = set(tokenizer.get_vocab()) - _special_tokens(tokenizer)
    except Exception as error:  # transformers and tokenizers raise what they please
        raise ValueError(
            f"{files.path}: no readable tokenizer beside the weights ({type(error).__name__}: {error}); fetch the "
            "model again, or upgrade transformers and tokenizers if its tokenizer.json is newer than they are"
        ) from error
    if not words:
        raise ValueError(
            f"{files.path}: the tokenizer is empty: {len(tokenizer)} tokens, all of them special. Its tokenizer.json "
            "or tokenizer.model is missing: fetch the model again"
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"{files.path}: its tokenizer is written in Python; expected one with a tokenizer.json")
    return tokenizer


def require_rows(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """Raises ValueError, which begins with `name`, for a token past the `rows` of the model's embedding."""
    past = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    if past:
        raise ValueError(
            f"{name}: {len(past)} tokens of the tokenizer have no row in the embedding of {rows:,}: the first is "
            f"{past[0][1]!r}, id {past[0][0]:,}. Use the tokenizer that the model was trained with, or resize its "
            "embedding (transformers: model.resize_token_embeddings)"
        )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content}


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids, with one BOS in front if this tokenizer's convention is to have one, also where the text (a rendered
    chat template) begins with it already. No EOS is added. Special tokens are read wherever they are written."""
    return _with_bos(tokenizer, tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False))


def _with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    return [bos, *ids] if bos is not None and tokenizer.encode("")[:1] == [bos] and ids[:1] != [bos] else ids


def make_codec(tokenizer: PreTrainedTokenizerBase, files: ModelFiles) -> Codec:
    """The tokenizer as the loop uses it. Special tokens are read in what a chat template wrote, and nowhere else.

    Raises ValueError for a model without a token that ends an answer.
    """
    special = re.compile("|".join(map(re.escape, sorted(_special_tokens(tokenizer), key=len, reverse=True))) or "(?!)")
    stop = stop_tokens(tokenizer, files)
    if not stop:
        raise ValueError(
            f"{files.path}: no token ends an answer: the tokenizer has no end token, and generation_config.json or the "
            "metadata names none. Add eos_token_id to it"
        )
    end = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(stop[0])
    marking = functools.cache(lambda: _marking(tokenizer.backend_tokenizer))  # takes a moment, and is seldom needed

    def read(text: str) -> list[int]:
        if not any(special.search(piece) for piece, meant in _pieces(text) if not meant):
            return tokenizer.encode(str(text), add_special_tokens=False, split_special_tokens=False)
        marked = [
            special.sub(rf"{MARK}\g<0>{MARK}", piece) if meant else piece.replace(MARK, "")
            for piece, meant in _pieces(text)
        ]
        return list(marking().encode("".join(marked), add_special_tokens=False).ids)

    return Codec(
        encode=lambda text: _with_bos(tokenizer, read(text)),
        encode_more=read,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        end=Marked((end, True)),
        stop=stop,
        vocabulary=lambda: vocabulary(tokenizer),
    )


def _marking(core: Tokenizer) -> Tokenizer:
    """The same tokenizer but that its special tokens are written between two MARKs: without, they are ordinary text."""
    saved = json.loads(core.to_str())
    renamed = {
        token["content"]: f"{MARK}{token['content']}{MARK}" for token in saved["added_tokens"] if token["special"]
    }
    for token in saved["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    model = saved["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(saved))


def chat(tokenizer: PreTrainedTokenizerBase, text: str, day: datetime.date = DAY) -> Marked:
    """`text` as a user's message in the model's chat template, up to where the answer begins.

    Raises ValueError for a base model, which has no template, and for a template that cannot be rendered.
    """
    if not tokenizer.chat_template:
        raise ValueError("this model has no chat template (a base model?); use its completion prompts instead")
    where = tokenizer.name_or_path or "this model"
    for as_parts in (False, True):  # some templates read a message as a list of parts
        frame = _rendered(tokenizer, _MESSAGE, as_parts, day, where)
        if _MESSAGE in frame:
            break
    else:
        raise ValueError(
            f"{where}: its chat template does not show a user's message; use its completion prompts instead"
        )
    whole, around = _rendered(tokenizer, text, as_parts, day, where), frame.split(_MESSAGE)
    for shown in (text, text.strip()):
        if shown.join(around) == whole:
            inside = [piece for part in around[1:] for piece in ((shown, False), (part, True))]
            return Marked((around[0], True), *inside)
    if any(token in text for token in _special_tokens(tokenizer)):
        raise ValueError(
            f"{where}: its chat template changes with the message, so that special tokens written out in it cannot be "
            "told from the template's; use its completion prompts instead"
        )
    return Marked((whole, True))


def _rendered(tokenizer: PreTrainedTokenizerBase, text: str, as_parts: bool, day: datetime.date, where: str) -> str:
    content = [{"type": "text", "text": text}] if as_parts else text
    try:
        template = _TODAY.sub(lambda call: repr(day.strftime(call[2])), tokenizer.get_chat_template())
        if "strftime_now(" in template:
            raise ValueError("it asks for today's date in a form that is not written out")
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen3 answers at once; other templates ignore it
            date_string=day.strftime("%d %b %Y"),  # Llama 3.2's
        )
    except Exception as error:  # Jinja's, or the template's own
        raise ValueError(
            f"{where}: its chat template cannot be rendered for one message of a user ({type(error).__name__}: "
            f"{error}); mend it (chat_template.jinja, or chat_template in tokenizer_config.json), or use the model's "
            "completion prompts (--style raw)"
        ) from error


class _Ends(msgspec.Struct):
    """generation_config.json and config.json, as far as they say what ends an answer."""

    eos_token_id: list[int] | int | None = None


def stop_tokens(tokenizer: PreTrainedTokenizerBase, files: ModelFiles) -> tuple[int, ...]:
    """Ids that end an answer, ascending: EOS, generation_config.json's and config.json's, and ends of turn.

    Raises ValueError for an id that is no token's.
    """
    named = {"the tokenizer": tokenizer.eos_token_id}
    if files.kind == "gguf":
        found = gguf.open_gguf(files.path).fields
        named |= {key: found.get(key) for key in (f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))}
    else:
        for file in (files.path / "generation_config.json", files.path / "config.json"):
            if file.is_file():
                named[file.name] = records.decode(
                    file.read_bytes(), _Ends, str(file), "{eos_token_id: id}"
                ).eos_token_id
    vocabulary = tokenizer.get_vocab()
    known = set(vocabulary.values())
    ends = {vocabulary[token] for token in END_TOKENS if token in vocabulary}
    for where, ids in named.items():
        for index in ids if isinstance(ids, list) else [ids]:
            if index is None or index in _NONE:
                continue
            if index not in known:
                raise ValueError(
                    f"{files.path}: {where}: eos_token_id is {index}; the tokenizer has no token of that id"
                )
            ends.add(index)
    return tuple(sorted(ends))


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """What each token adds to a text, [V], in bytes, since a token may hold half a character; None for special tokens,
    which add nothing, and for ids without a token.

    Of sentencepiece's tokens it is what they add after the first: a blank that begins a text is not shown by it.

    Raises ValueError for a tokenizer of which that cannot be said token by token.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(core.to_str())["decoder"] if core is not None else None
    steps = {step["type"] for step in (decoder or {}).get("decoders", [decoder]) if step}
    if not steps & {"ByteLevel", "ByteFallback"}:
        raise ValueError(
            f"decoding cannot be constrained for this tokenizer: it decodes with {sorted(steps) or 'no decoder'}; "
            "expected 'ByteLevel' (GPT-2, Llama 3, Qwen) or 'ByteFallback' (sentencepiece, Llama 2). Sample without a "
            "constraint"
        )
    spell = _spell_byte_level if "ByteLevel" in steps else _spell_sentencepiece
    tokens = tokenizer.get_vocab()
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    spelled: list[bytes | None] = [None] * (max(tokens.values()) + 1)
    for token, index in tokens.items():
        if index not in special:
            spelled[index] = spell(token)
    return spelled


# GPT-2 writes bytes as letters: printable Latin-1 as itself, the others, in order, as those from U+0100 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF_LETTER |= {chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}


def _spell_byte_level(token: str) -> bytes:
    if all(letter in _BYTE_OF_LETTER for letter in token):
        return bytes(_BYTE_OF_LETTER[letter] for letter in token)
    return token.encode()  # a token that was added as plain text


def _spell_sentencepiece(token: str) -> bytes:
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(byte[1])
    return token.replace("▁", " ").encode()


# ---------------------------------------------------------------------------------------------------------------------
# GGUF


def _from_gguf(path: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    metadata, start = gguf.open_gguf(path).fields, "tokenizer."
    found = fields.read(
        TOKENIZER,
        TokenizerFields,
        {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)},
        str(path),
        start,
    )
    kind, tokens, types = found.ggml__model, found.ggml__tokens, found.ggml__token_type
    split = _SPLIT_NAMES.get(found.ggml__pre, found.ggml__pre) if kind == "gpt2" else ""
    if kind not in ("gpt2", "llama"):
        raise ValueError(
            f"{path}: tokenizer.ggml.model is {kind!r}; expected 'gpt2' (byte-level BPE) or 'llama' (sentencepiece). "
            "Load the model from its Hugging Face folder instead"
        )
    if split and split not in _SPLITS:
        raise ValueError(
            f"{path}: pre-tokenizer {split!r} is not known here; expected one of {sorted(_SPLITS)}. Load the model "
            "from its Hugging Face folder instead"
        )
    _check_tokens(found, path)
    try:
        if kind == "gpt2":
            core = _byte_level(tokens, found.ggml__merges or [], split)
        else:
            core = _sentencepiece(tokens, found.ggml__scores or [], types, found.ggml__add_space_prefix)
    except Exception as error:  # tokenizers raises plain Exceptions, such as for a merge of tokens that are not there
        raise ValueError(f"{path}: its tokenizer cannot be rebuilt ({error}); fetch the file again") from error
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in _of_type(tokens, types, _CONTROL)])
    core.add_tokens([AddedToken(t, normalized=False, special=False) for t in _of_type(tokens, types, _USER_DEFINED)])

    special = {}
    for name, index in [
        ("bos", found.ggml__bos_token_id),
        ("eos", found.ggml__eos_token_id),
        ("unk", found.ggml__unknown_token_id),
        ("pad", found.ggml__padding_token_id),
    ]:
        if index is not None and index not in _NONE:
            special[f"{name}_token"] = tokens[index]
    # Where the file does not say, llama.cpp's rule for this kind of vocabulary holds.
    has_bos = found.ggml__add_bos_token
    if has_bos is None:
        has_bos = kind == "llama" or split == "llama-bpe"
    if has_bos and (bos := special.get("bos_token")):
        core.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=found.chat_template,
        clean_up_tokenization_spaces=False,
        name_or_path=str(path),
        **special,
    )


def _check_tokens(found: TokenizerFields, path: Path) -> None:
    """Raises ValueError for a token that is listed twice, lists of unequal length, and ids without a token."""
    tokens, size = found.ggml__tokens, len(found.ggml__tokens)
    if len(set(tokens)) < size:
        first: dict[str, int] = {}
        again = next(i for i, token in enumerate(tokens) if first.setdefault(token, i) != i)
        raise ValueError(
            f"{path}: token {tokens[again]!r} is listed twice, as {first[tokens[again]]} and {again}; which one a text "
            "would become is not said. Convert the model anew"
        )
    lists = {"token_type": found.ggml__token_type} | (
        {"scores": found.ggml__scores} if found.ggml__model == "llama" else {}
    )
    for name, values in lists.items():
        if len(values or ()) != size:
            raise ValueError(f"{path}: tokenizer.ggml.{name} has {len(values or ()):,} values for {size:,} tokens")
    for key in ("bos", "eos", "unknown", "padding"):
        index = getattr(found, f"ggml__{key}_token_id")
        if index is not None and index not in _NONE and not 0 <= index < size:
            raise ValueError(f"{path}: tokenizer.ggml.{key}_token_id is {index}; there are {size:,} tokens")


def _of_type(tokens: list[str], types: list[int], wanted: int) -> list[str]:
    return [token for token, kind in zip(tokens, types, strict=True) if kind == wanted]


def _byte_level(tokens: list[str], merges: list[str], split: str) -> Tokenizer:
    pairs = [merge.split(" ") for merge in merges]
    core = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(left, right) for left, right in pairs],
            # Llama 3's vocabulary holds words that its merges do not build
            ignore_merges=split == "llama-bpe",
        )
    )
    if split == "qwen2":
        core.normalizer = normalizers.NFC()
    # SmolLM cuts with GPT-2's own pattern once the digits are apart; the others have brought a pattern of their own.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == "smollm")
    core.pre_tokenizer = pre_tokenizers.Sequence([_SPLITS[split], byte_level])
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(tokens: list[str], scores: list[float], types: list[int], space_prefix: bool) -> Tokenizer:
    """Sentencepiece's BPE as Llama 2 uses it: spaces are letters, and what has no piece is spelled in bytes.

    It stores no merges: of all neighbours, the pair whose union has the best score is merged. That is the same as every
    way to cut a piece in two, ordered by the piece's score.
    """
    index = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, score, kind in zip(tokens, scores, types, strict=True):
        if kind == _NORMAL:
            cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
            merges += [(-score, index[a], index[b], a, b) for a, b in cuts if a in index and b in index]
    unknown = _of_type(tokens, types, _UNKNOWN)
    core = Tokenizer(
        models.BPE(
            vocab=index,
            merges=[(a, b) for *_, a, b in sorted(merges)],
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend("▁")] if space_prefix else []
    core.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return core


TOKENS_A_WORD = 1.4  # of English, a fair rule


def stand_in_codec() -> Codec:
    """Counts tokens by words, for the plan of a run whose model is not on this machine yet."""

    def encode(text: str) -> list[int]:
        return [0] * math.ceil(TOKENS_A_WORD * len(text.split()))

    return Codec(encode, encode, lambda ids: "", end="", stop=(0,))
