"""What is read, refused and ignored of a model's files, as a page: `python -m docs.fields > docs/fields.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

from seal_jax.io.fields import ADAPTER, CONFIG, GGUF, OFF, ROPE, TOKENIZER, Table

PAGE = """# What is read of a model's files

Made from the tables that the readers use by `python -m docs.fields > docs/fields.md`.

A field that a table lists as refused stops the run, with the file, the field and the value, unless it is absent, null
or has the value that is given. A field in no table stops it likewise, unless its value says that it is not in use:
null, false, 0, or empty. Of `generation_config.json`, `eos_token_id` is read; a folder's tokenizer is read by
transformers.
"""


def page() -> str:
    """The tables as Markdown."""
    parts = [PAGE]
    for title, table in {
        "config.json": CONFIG,
        "RoPE in config.json: `rope_parameters` or `rope_scaling`": ROPE,
        "GGUF: keys of the architecture, such as `llama.block_count`": GGUF,
        "GGUF: keys of the tokenizer, such as `tokenizer.ggml.model`": TOKENIZER,
        "adapter_config.json": ADAPTER,
    }.items():
        rows = [f"| `{name}` | read | {text} |" for name, text in _described(table)]
        for name, only in table.refused.items():
            values = "not in use" if only.values is OFF else " or ".join(f"`{json.dumps(v)}`" for v in only.values)
            rows.append(f"| `{name}` | refused unless {values} | {only.why} |")
        rows += [f"| `{name}` | ignored | {why} |" for name, why in table.ignored.items()]
        parts += [f"\n## {title}\n\n| field | | |\n|---|---|---|\n" + "\n".join(rows) + "\n"]
    parts.append(
        "\nOf a GGUF file's other keys `general.architecture`, `general.alignment`, `general.type` (refused unless "
        "`model`) and `split.count`\n(refused unless 1) are read; the rest of `general.`, and whatever belongs to "
        "other programs, is ignored.\n"
    )
    return "".join(parts)


def _described(table: Table) -> Iterator[tuple[str, str]]:
    for field in msgspec.structs.fields(table.record):
        said = ["required"] if field.required else []
        yield field.encode_name, "; ".join([*said, *filter(None, [table.read.get(field.encode_name)])])


if __name__ == "__main__":
    print(page(), end="")
