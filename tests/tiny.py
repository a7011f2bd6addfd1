"""Tiny models made on the spot, with random weights: in memory, spelled word by word; and as a folder on disk.

A random model writes every word of its vocabulary about as often as any other, so what it prefers after training it has
learned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from seal_jax.domains.passages import INVENTED
from seal_jax.io import weights
from seal_jax.nn import transformer
from seal_jax.types import Codec, LanguageModel

END = "<end>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<user>{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_codec(words: Sequence[str]) -> Codec:
    """A token a word, words apart by blanks; `<end>`, which ends a completion, is token 0 and is not shown."""
    vocabulary = [END, *words]
    index = {word: i for i, word in enumerate(vocabulary)}

    def encode(text: str) -> list[int]:
        return [index[word] for word in text.split()]

    def decode(ids: Sequence[int]) -> str:
        return " ".join(vocabulary[i] for i in ids if i)

    return Codec(encode, encode, decode, f" {END}", (0,))


def config(vocab_size: int, *, width: int = 32, layers: int = 2, context_length: int = 1024) -> transformer.ModelConfig:
    """Two heads, one key-value head, an untied head: logits near zero, so that all tokens are about equally likely."""
    return transformer.ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=width // 2,
        intermediate_size=2 * width,
        tie_embeddings=False,
        context_length=context_length,
    )


def language_model(words: Sequence[str], *, seed: int = 0, width: int = 32, layers: int = 2) -> LanguageModel:
    """A random model that reads and writes `words`, on one device."""
    shape = config(len(words) + 1, width=width, layers=layers)
    params = transformer.random_params(seed, shape)
    params["embed"]["embedding"] = params["embed"]["embedding"] / jnp.std(params["embed"]["embedding"])
    return LanguageModel(transformer.graph(shape), params, word_codec(words))


def model_folder(folder: Path, *, seed: int = 0, vocab_size: int = 768, context_length: int = 1024) -> Path:
    """A random model in Hugging Face's layout, its tokenizer trained on the invented passages, with a chat template."""
    passages = json.loads(INVENTED.read_text(encoding="utf-8"))
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, "<user>", "<assistant>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator((passage["context"] for passage in passages), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False
    )
    shape = config(len(tokenizer), context_length=context_length)
    weights.save_model(folder, shape, transformer.random_params(seed, shape), tokenizer)
    return folder
