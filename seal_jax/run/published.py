"""A model that learned to write self-edits, given to others: its adapter, its card, and the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2

import seal_jax
from seal_jax.domains import squad
from seal_jax.io import hub
from seal_jax.nn import lora
from seal_jax.report.results import read_results
from seal_jax.run import pretraining, runtime
from seal_jax.run.adapted import Adapted
from seal_jax.run.journal import read_run

LOCAL = re.compile(r"(?<=[\s=])/\S*/(\S+)")  # a path of the machine it ran on, of which others need the name
CARD = jinja2.Template(
    """---
{% if on_hub %}base_model: {{ base }}
{% endif %}library_name: {{ library }}
tags: [seal, self-adapting, lora]
---

# {{ name }}

{{ base }}, trained to write self-edits:
notes on a passage, from which it then learns the passage by LoRA. SEAL
([arXiv 2506.10943](https://arxiv.org/abs/2506.10943)), as seal_jax {{ version }} runs it:
{{ rounds }} round{{ "" if rounds == 1 else "s" }} of `{{ outer.method }}` with {{ outer.passages }} passages a round
({{ data }}) and {{ outer.samples }} self-edits a passage.

| on {{ rows[0].passages }} held-out passages | right, % | against the row above, points |
|---|---|---|
{% for row in rows -%}
| {{ row.title }} | {{ figure(row.accuracy, "{:.1f}") }} | {{ figure(row.versus_previous, "{:+.1f}") }} |
{% endfor %}
In brackets: 95 % intervals over passages. The last row is of self-edits that this model wrote.

## How it is asked for a self-edit

{{ "As a user's message:" if chat else "As text to continue:" }}

{% for line in prompt.splitlines() %}    {{ line }}
{% endfor %}
## How it was made

    {{ command }}

Licence: that of {{ base }}.
""",
    keep_trailing_newline=True,
)


def trained(run: Path) -> Adapted:
    """The model that a run of experiments.squad trained, its rounds as one adapter over the model it began with.

    Raises:
        ValueError: no finished run, none with rounds of RL on the model that learns, or a damaged one; every round
            kept nothing.
    """
    chosen = model_of(run)
    settings, _, adapters = pretraining.trained_by(chosen, said="{}")
    if not adapters:
        raise ValueError(f"{run}: no round kept a self-edit, and the model is as it was; nothing to export")
    speaker = runtime.load(
        chosen.model, dtype=chosen.dtype, style=settings["style"], devices=None, base=chosen.base, alone=True
    )
    assert speaker.model is not None  # it has been loaded
    *below, last = pretraining.seal_rounds(chosen, speaker.lm, said="{}")
    lm = speaker.lm
    for adapter in below:
        lm = lm._replace(params=lora.merge(lm.params, adapter))
    asked = squad.about_nothing(squad.load_prompts(settings["prompt"], speaker.style).question)
    return Adapted(
        lm, speaker.model, chosen.model, last, tuple(below), "", asked, speaker.render, settings["answer_tokens"],
        dtype=chosen.dtype, base=chosen.base,
    )  # fmt: skip


def model_of(run: Path) -> SimpleNamespace:
    """Which run's training is wanted over which model: its own."""
    settings = read_run(run).config
    return SimpleNamespace(seal=run, **{name: settings.get(name) for name in ("model", "dtype", "base")})


def card(run: Path, model: Adapted, name: str, *, merged: bool) -> str:
    """The model card of what a run trained, Markdown with the hub's fields, with the run's own figures."""
    results = read_results(run / "results.json")
    settings, rounds, _ = pretraining.trained_by(model_of(run), said="{}")
    last = [row.name for row in results.rows].index(f"self_edits_round_{rounds}")
    rows, base = results.rows[: last + 1], hub.published_as(results.model)
    on_hub = not Path(base).is_absolute()
    prompt = squad.load_prompts(settings["prompt"], "raw" if model.render is str else "chat")
    return CARD.render(
        name=name, base=base if on_hub else Path(base).name, on_hub=on_hub,
        library="transformers" if merged else "peft", version=seal_jax.__version__, rounds=rounds,
        outer=settings["outer"], data=results.data, rows=rows,
        prompt=prompt.self_edit, chat=prompt.style == "chat", command=LOCAL.sub(r"\1", results.command), figure=figure,
    )  # fmt: skip


def figure(value: Any, form: str) -> str:
    """A share in percent with its interval."""
    if value.mean is None:
        return ""
    mean, *ends = (form.format(100 * x) for x in (value.mean, value.low, value.high) if x is not None)
    return f"{mean} [{', '.join(ends)}]" if len(ends) == 2 else mean


def reserve(repository: str) -> str:
    """The address of a private model on the Hugging Face hub, made if need be.

    Raises:
        ValueError: not logged in, no network, the hub refuses, or the model is there and public.
    """
    from huggingface_hub import HfApi

    with _explained(repository):
        address = HfApi().create_repo(repository, private=True, exist_ok=True)
        if not HfApi().model_info(repository).private:
            raise ValueError("that model is public; make it private, or name another")
    return str(address)


def upload(folder: Path, repository: str) -> None:
    """Uploads a folder's files as that model. Raises as `reserve`."""
    from huggingface_hub import HfApi

    with _explained(repository):
        HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by seal_jax")


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Whatever the hub or the way there raises, as one sentence."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ValueError("--push: not logged in to the Hugging Face hub; run: hf auth login") from error
    except Exception as error:  # of the transport's own kinds too
        raise ValueError(f"--push {repository}: {str(error).strip().partition(chr(10))[0]}") from error
