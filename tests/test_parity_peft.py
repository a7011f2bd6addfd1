"""The inner loop is PEFT's, loss for loss over 80 steps; and, live, logits are those of transformers as installed."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from experiments import parity
from experiments.benchmark import ours
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning
from seal_jax.io.hub import find_model
from seal_jax.io.peft import load_peft
from seal_jax.io.weights import load_model


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


@pytest.fixture(scope="module")
def peers():
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    return importlib.import_module("experiments.benchmark.peers")


@pytest.fixture(scope="module")
def smollm2(peers):
    try:
        files = find_model("smollm2-135m")
    except OSError as error:
        pytest.skip(f"SmolLM2-135M is neither cached nor downloadable: {error}")
    config, params = load_model(files)
    return parity.as_lm(config, params), config, peers.load(files)


@pytest.mark.peers
@pytest.mark.parametrize("name", parity.CHECKPOINTS)
def test_logits_and_greedy_tokens_live(name, peers):
    row = parity.compare_small_logits(name, peers)
    print(row)
    assert row.holds


@pytest.mark.peers
@pytest.mark.parametrize(("name", "which"), parity.FINE_TUNED)
def test_losses_live(name, which, peers):
    row = parity.compare_small_losses(name, which, peers)
    print(row)
    assert row.holds


@pytest.mark.peers
def test_smollm2_logits_live(smollm2, peers):
    lm, _, theirs = smollm2
    row = parity.compare_smollm2_logits(lm, peers, theirs)
    print(row)
    assert row.holds


@pytest.mark.peers
@pytest.mark.parametrize("which", parity.TARGETS)
def test_smollm2_losses_live(smollm2, which, peers):
    lm, config, theirs = smollm2
    row = parity.compare_smollm2_losses(lm, config, which, peers, theirs)
    print(row)
    assert row.holds
