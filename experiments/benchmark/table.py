"""What the benchmark prints: a row of its table, the ratios, and the limit without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seal_jax.engine import costs

from . import workloads

if TYPE_CHECKING:
    from seal_jax.nn.transformer import ModelConfig

    from .command import Common

TITLES = {
    "train_qv": "train q,v",
    "train_all": "train all 7",
    "decode": "answer",
    "edit": "train + answer",
    "seal": "train ragged",
    "sample": "write",
}
HEAD = [
    f"{'':<25}{'per self-edit, s':>18}{'':>5}{'tokens/s':>14}{'':>6}{'MFU, %':>11}{'':>7}{'peak':>6}{'comp.':>7}",
    f"{'stage':<15}{'by':<10}{'time':>9}{'floor':>9}{'x':>5}{'real':>7}{'all':>7}{'ratio':>6}"
    f"{'real':>5}{'all':>6}{'GB/s':>7}{'GiB':>6}{'s':>7}",
]


def table_line(row: dict[str, Any]) -> str:
    """A row's figures under `HEAD`."""

    def show(value: float | None, form: str = ".3g") -> str:
        return "" if value is None else _plain(format(value, form))

    peak = row["peak_bytes"] / 2**30 if row["peak_bytes"] else None
    return (
        f"{TITLES[row['stage']]:<15}{row['who']:<10}{show(row['seconds']):>9}{show(row['floor_seconds']):>9}"
        f"{show(row['times_floor'], '.1f'):>5}{_count(row['tokens_per_second']):>7}"
        f"{_count(row['processed_tokens_per_second']):>7}{row['padding']:>6.2f}{100 * row['mfu']:>5.1f}"
        f"{100 * row['mfu_processed']:>6.1f}{show(row['bytes_per_second'] / 1e9, '.2f'):>7}{show(peak, '.1f'):>6}"
        f"{show(row['compile_seconds'], '.1f'):>7}"
    )


def _count(n: float) -> str:
    return f"{n:.0f}" if n < 99_999.5 else f"{n / 1e3:.0f}k"


def _plain(number: str) -> str:
    return f"{float(number):.0f}" if "e+" in number else number


def ratio_lines(rows: Sequence[Any]) -> list[str]:
    """The ratios, a line a peer."""
    from . import stages

    found = stages.ratios(rows)
    if not found:
        return []
    lines = ["", "their time for a self-edit over ours, compiling left out:"]
    for name, of in found.items():
        lines.append(f"  {name:<11}" + "   ".join(f"{TITLES[stage]} {ratio:.2f}" for stage, ratio in of.items()))
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The limit, without running


def limit_lines(model: ModelConfig, config: Common) -> list[str]:
    """FLOPs and bytes of a self-edit at the least, for a model of this shape."""
    from . import stages

    name = config.random or config.model
    size = {"float32": 4, "bfloat16": 2, "auto": 2}[config.dtype]
    sharing = config.adapters / (config.devices or 1)
    ragged = workloads.seal(64, seed=config.seed)
    lines = [
        f"{name}: {costs.model_parameters(model) / 1e6:,.1f} M parameters, "
        f"{costs.matmul_parameters(model) / 1e6:,.1f} M of them multiplied with every token, {size} bytes each",
        f"{config.adapters} adapters of rank {config.rank} at a time, {config.epochs} epochs; on each of "
        f"{config.devices or 1} devices {sharing:g} share a reading of the weights",
        "",
        f"{'a self-edit':<44}{'tokens':>8}{'TFLOP':>9}{'GB':>9}{'FLOP/byte':>11}",
    ]

    def add(title: str, tokens: float, phases: Sequence[costs.Cost]) -> None:
        for phase, suffix in zip(phases, ("", ": optimiser" if "train" in title else ": token by token"), strict=True):
            intensity = phase.flops / phase.bytes
            shown = f"{title}{suffix}" if suffix else title
            count = f"{tokens:,.0f}" if not suffix else ""
            lines.append(f"{shown:<44}{count:>8}{phase.flops / 1e12:>9.3g}{phase.bytes / 1e9:>9.3g}{intensity:>11.3g}")

    for stage, lengths in (("train_qv", [[48] * 8]), ("train_all", [[48] * 8]), ("seal", ragged)):
        lora = costs.lora_parameters(model, stages.TARGETS[stage], config.rank)
        phases = costs.mean_training(model, lora, lengths, epochs=config.epochs, sharing=sharing, itemsize=size)
        add(TITLES[stage], config.epochs * sum(map(sum, lengths)) / len(lengths), phases)
    lora = costs.lora_parameters(model, stages.TARGETS["train_qv"], config.rank)
    answering = costs.decoding(
        model, lora, prompts=stages.QUESTIONS, samples=1, prompt_tokens=stages.QUESTION_TOKENS,
        new_tokens=stages.ANSWER_TOKENS, sharing=sharing, itemsize=size,
    )  # fmt: skip
    add("answer", stages.QUESTIONS * stages.ANSWER_TOKENS, answering)
    return lines
