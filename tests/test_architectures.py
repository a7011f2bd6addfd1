"""Every named shape has as many parameters as its publisher says, and is one that the decoder can be made of."""

from __future__ import annotations

import jax
import pytest

from seal_jax.engine import costs
from seal_jax.io.architectures import NAMED, named
from seal_jax.nn import transformer

# Millions, as the safetensors of each hold (a tied output head counted once).
PUBLISHED = {
    "smollm2-135m": 134.5,
    "smollm2-360m": 361.8,
    "smollm2-1.7b": 1711.4,
    "llama-3.2-1b": 1235.8,
    "llama-3.2-3b": 3212.7,
    "llama-3.1-8b": 8030.3,
    "llama-3.1-70b": 70553.7,
    "qwen2.5-0.5b": 494.0,
    "qwen2.5-1.5b": 1543.7,
    "qwen2.5-3b": 3085.9,
    "qwen2.5-7b": 7615.6,
    "qwen2.5-14b": 14770.0,
    "qwen2.5-32b": 32763.9,
    "qwen2.5-72b": 72706.2,
    "qwen3-0.6b": 596.0,
    "qwen3-1.7b": 1720.6,
    "qwen3-4b": 4022.5,
    "qwen3-8b": 8190.7,
    "qwen3-14b": 14768.3,
    "qwen3-32b": 32762.1,
}


def test_every_shape_but_the_one_for_tests_has_a_published_size():
    assert set(PUBLISHED) == set(NAMED) - {"tiny"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    assert costs.model_parameters(NAMED[name]) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.06)


@pytest.mark.parametrize("name", NAMED)
def test_the_decoder_is_made_of_it(name):
    """Shapes only: nothing is allocated."""
    shapes = jax.eval_shape(lambda: transformer.random_params(0, NAMED[name]))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == costs.model_parameters(NAMED[name])
    for projection, shape in NAMED[name].kernels().items():
        assert shapes["blocks"][projection]["kernel"].shape == (NAMED[name].num_layers, *shape)


def test_a_typo_is_answered_with_a_suggestion():
    with pytest.raises(ValueError, match=r"did you mean 'llama-3\.2-1b'"):
        named("llama3.2-1b")
