"""What transformers reads from the embedded model's GGUF: token ids, logits and greedy tokens.

    python tests/golden/make_smollm2.py PATH/TO/SmolLM2-135M-Instruct.Q4_1.gguf
    (torch 2.13.0 on CPU, transformers 5.23.0, gguf; about a minute)

Writes smollm2.json (strings and their ids, the prompt, its greedy continuation) and smollm2.npz (float32 logits after
each prompt token for every 97th vocabulary entry, and after the last for all of them).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
QUESTION = "What is the capital of France, and which river runs through it? Answer in one sentence."
STRINGS = [
    "",
    " ",
    "Hello world",
    " Hello  world   ",
    "The year 1984, 3.14159, 1,234,567 and 0x1F; call 555-0123 at 12:30.",
    "x2 y10 z345 10km 7th",
    "don't I'll we've she'd they're I'm it's DON'T I'LL",
    "tabs\tand\nnew\n\nlines\r\nand\r\n\r\n    indented\n\t\tmore   \n",
    "def f(x: int) -> int:\n    return x ** 2 + 1  # square\n\nprint(f(3))\n",
    '{"title": "A", "context": [1, 2.5, null, true]}',
    "naïve café Zürich straße ÆØÅ ﬁ ligature",
    "e\u0301 combining, \u00e9 composed, \u200bzero width\u00a0no-break",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "Привет мир! Γειά σου κόσμε. שלום עולם مرحبا بالعالم",
    "emoji 😀👩‍🚀🏳️‍🌈 and symbols ∑∫√∞ ≠ ≤ →",
    "١٢٣ ४५६ Ⅷ ² ½",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>text <|im_end|> <repo_name> <not_special> <|im_start",
    '---\n1. First implication.\n2. Second: "quoted" — em-dash… ellipsis\n---',
    "a" * 40 + " " + "!?" * 10 + " " * 17 + "end",
    "https://example.org/path?query=1&other=two#frag user@example.org C:\\dir\\file.txt",
    "\u0000\u0001\u007f control",
]


def main() -> None:
    path = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
    golden = {
        "strings": [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in STRINGS],
        "question": QUESTION,
        "prompt": prompt,
        "ids": ids,
        "greedy": greedy,
    }
    (HERE / "smollm2.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(HERE / "smollm2.npz", strided=logits[:, ::97], last=logits[-1])
    print(tokenizer.decode(greedy))


if __name__ == "__main__":
    main()
