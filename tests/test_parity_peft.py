"""The inner loop is PEFT's, loss for loss over 80 steps; and, live, logits are those of transformers as installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import parity
from experiments.benchmark import ours
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning
from seal_jax.io.peft import load_peft
from seal_jax.io.weights import load_model

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("name", "which"), parity.FINE_TUNED)
def test_losses_are_those_of_peft_at_every_step(name, which):
    folder = parity.GOLDEN / "peft" / f"{name}_{which}"
    run = parity.read_golden_losses(folder)
    assert len(run.losses) == 80
    assert run.losses[:8].mean() - run.losses[-8:].mean() > 0.5  # it learned something
    row = parity.compare_small_losses(name, which)
    print(row)
    assert row.holds


def test_the_parity_of_losses_sees_a_wrong_setting():
    """Half of alpha, a constant learning rate, no clipping: each is far out of bounds."""
    config, params = load_model(parity.small_files("llama32"))
    folder = parity.GOLDEN / "peft" / "llama32_qv"
    start, run, lm = load_peft(folder, config), parity.read_golden_losses(folder), parity.as_lm(config, params)

    def difference(adapter=start, **optimiser: Any):
        settings = FineTuning(rank=32, alpha=64, optimiser=Optimiser(**optimiser))
        return np.abs(ours.losses(lm, adapter, run.tokens, run.order.tolist(), settings) - run.losses).max()

    assert difference() < parity.BOUND
    assert difference(start.replace(scale=start.scale / 2)) > 10 * parity.BOUND
    assert difference(schedule="constant") > 10 * parity.BOUND
    assert difference(clip_norm=1e9) > 10 * parity.BOUND


# ---------------------------------------------------------------------------------------------------------------------
# Live: `make parity`


@pytest.mark.peers
@pytest.mark.timeout(1200)
def test_the_command_compares_live_and_all_holds():
    """`experiments.parity` as a user runs it: each small checkpoint, each fine-tuning, and the embedded model."""
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    done = subprocess.run([sys.executable, "-m", "experiments.parity"], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    rows = [line.split()[0] for line in done.stdout.splitlines()[1:-1]]
    small = [*parity.CHECKPOINTS, *(name for name, _ in parity.FINE_TUNED)]
    assert rows == [*small, *["smollm2-135m"] * (1 + len(parity.TARGETS))]
    assert "golden" not in done.stdout
