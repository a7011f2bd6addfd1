"""Text to token ids and back: tokenizers of Hugging Face folders and of GGUF files, chat templates, stop tokens.

transformers reads a GGUF's tokenizer only with torch installed, so it is rebuilt here from the tokens and merges in the
file's metadata.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from seal_jax.io import gguf
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

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # llama.cpp's token types

# What ends an answer, in whichever family; only those that are in the vocabulary as one token count.
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>")


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """The model's tokenizer with its special tokens and chat template. Code from a repository is never run.

    Raises ValueError where a GGUF's tokenizer is of a kind that is not rebuilt here.
    """
    if files.kind == "gguf":
        return _from_gguf(files)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(files.path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{files.path}: no readable tokenizer beside the weights ({error}); fetch the model again"
        ) from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids, with one BOS in front if this tokenizer's convention is to have one, also where the text (a rendered
    chat template) begins with it already. No EOS is added."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer.encode("")[:1] == [bos] and ids[:1] != [bos]:
        ids = [bos, *ids]
    return ids


def make_codec(tokenizer: PreTrainedTokenizerBase, files: ModelFiles) -> Codec:
    """The tokenizer as the loop uses it."""
    return Codec(
        encode=lambda text: encode(tokenizer, text),
        encode_more=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        end=tokenizer.eos_token or "",
        stop=stop_tokens(tokenizer, files),
        vocabulary=lambda: vocabulary(tokenizer),
    )


def chat(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` as a user's message in the model's chat template, up to where the answer begins.

    Raises ValueError for a base model, which has no template.
    """
    if not tokenizer.chat_template:
        raise ValueError("this model has no chat template (a base model?); use its completion prompts instead")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # Qwen3 answers at once; other templates ignore it
        date_string="26 Jul 2024",  # Llama 3.2's default; without it the prompt, and every figure, changes with the day
    )


def stop_tokens(tokenizer: PreTrainedTokenizerBase, files: ModelFiles) -> tuple[int, ...]:
    """Ids that end an answer, ascending: EOS, generation_config.json's and config.json's, and ends of turn."""
    found = {tokenizer.eos_token_id}
    if files.kind == "gguf":
        reader = gguf.open_gguf(files.path)
        found |= {gguf.field(reader, f"tokenizer.ggml.{name}_token_id", None) for name in ("eos", "eot", "eom")}
    else:
        for file in (files.path / "generation_config.json", files.path / "config.json"):
            if file.is_file():
                eos = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
                found |= set(eos) if isinstance(eos, list) else {eos}
    vocabulary = tokenizer.get_vocab()
    found |= {vocabulary[token] for token in END_TOKENS if token in vocabulary}
    return tuple(sorted(found - {None}))


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


def _from_gguf(files: ModelFiles) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    reader = gguf.open_gguf(files.path)

    def get(name: str, *default: Any) -> Any:
        return gguf.field(reader, f"tokenizer.{name}", *default)

    split = ""
    kind, tokens, types = get("ggml.model"), get("ggml.tokens"), get("ggml.token_type")
    if kind == "gpt2":
        split = get("ggml.pre", "absent")
        split = _SPLIT_NAMES.get(split, split)
        if split not in _SPLITS:
            raise ValueError(
                f"{files.path}: pre-tokenizer {split!r} is not known here; expected one of {sorted(_SPLITS)}. Load the "
                "model from its Hugging Face folder instead"
            )
        core = _byte_level(tokens, get("ggml.merges"), split)
    elif kind == "llama":
        core = _sentencepiece(tokens, get("ggml.scores"), types, get("ggml.add_space_prefix", True))
    else:
        raise ValueError(
            f"{files.path}: tokenizer.ggml.model is {kind!r}; expected 'gpt2' (byte-level BPE) or 'llama' "
            "(sentencepiece). Load the model from its Hugging Face folder instead"
        )
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in _of_type(tokens, types, _CONTROL)])
    core.add_tokens([AddedToken(t, normalized=False, special=False) for t in _of_type(tokens, types, _USER_DEFINED)])

    special = {}
    for name, key in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]:
        if (index := get(f"ggml.{key}_token_id", None)) is not None:
            special[f"{name}_token"] = tokens[index]
    # Where the file does not say, llama.cpp's rule for this kind of vocabulary holds.
    has_bos = get("ggml.add_bos_token", kind == "llama" or split == "llama-bpe")
    if has_bos and (bos := special.get("bos_token")):
        core.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=get("chat_template", None),
        clean_up_tokenization_spaces=False,
        **special,
    )


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
