"""Trains a tiny sentencepiece model with Llama 2's options and records how sentencepiece itself cuts some strings.

    python tests/golden/make_sentencepiece.py      (sentencepiece 0.2.3; a second)

Writes sentencepiece.json: pieces, scores and types as a GGUF file stores them, and strings with their ids.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece

HERE = Path(__file__).parent
TEXT = """SEAL teaches a language model to write its own training data. Given new input, the model samples self-edits.
Each self-edit is applied in an inner loop: a small adapter is trained on it, and the adapted model is tested on a task
without the input in its context. The score is the reward of the self-edit. The outer loop keeps the winning self-edits,
trains the model to write them, merges, and repeats. The year was 1984; 3 of 10 answers were right.
    def reward(answers, gold):
        return sum(a == g for a, g in zip(answers, gold)) / len(gold)
"""
STRINGS = [
    "",
    "Hello world",
    " leading and trailing ",
    "two  spaces   three",
    "the self-edit's reward was 12.5% in 1984",
    "naïve café 日本語 😀",
    "line\nbreaks\n\n\tand tabs",
    "the model samples self-edits and merges them",
    "    return sum(a)",
    "trainertrainingtrained",
]


def main() -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=trained,
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(model.vocab_size())
    kinds = [(model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6), (lambda _: True, 1)]
    golden = {
        "tokens": [model.id_to_piece(i) for i in ids],
        "scores": [round(model.get_score(i), 4) for i in ids],
        "types": [next(kind for test, kind in kinds if test(i)) for i in ids],
        "strings": [{"text": text, "ids": model.encode(text)} for text in STRINGS],
    }
    (HERE / "sentencepiece.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
