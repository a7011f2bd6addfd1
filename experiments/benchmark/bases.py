"""What a quantised base costs: its bytes, and how well it predicts text, beside the same model in full."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seal_jax.domains.passages import INVENTED
from seal_jax.engine import batching
from seal_jax.engine.memory import readable
from seal_jax.nn import quantised
from seal_jax.nn.transformer import Model
from seal_jax.types import Base

from .bench import Bench

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float, Int

LINE = "{base:<8}{size:>12}{perplexity:>12}{likeliest:>22}"
HEAD = LINE.format(base="base", size="weights", perplexity="perplexity", likeliest="likeliest as in full")


@partial(jax.jit, static_argnames="model")
def predicted(
    model: Model, params: dict[str, Any], tokens: Int[Array, "1 T"]
) -> tuple[Float[Array, "T-1"], Int[Array, "T-1"]]:
    """Each next token's log-probability, in nats, and the likeliest one."""
    decoder = nnx.merge(model, params)
    hidden = decoder(tokens)[0][:, :-1]
    return decoder.log_probs(hidden, tokens[:, 1:])[0], jnp.argmax(decoder.logits(hidden)[0], axis=-1)


def show(bench: Bench) -> dict[str, Any]:
    """Prints a line a base, over the embedded invented passages, each by itself.

    Raises:
        ValueError: random weights, which predict nothing.
    """
    if bench.settings.random is not None:
        raise ValueError("bases asks how well a model predicts text: name one with --model, not --random")
    quantised.require("nf4")
    passages = json.loads(INVENTED.read_text(encoding="utf-8"))
    texts = [bench.lm.codec.encode(f"{passage['title']}\n{passage['context']}") for passage in passages]
    width = batching.round_up(max(map(len, texts)), 32)
    real = np.arange(width - 1) < np.array([len(ids) - 1 for ids in texts])[:, None]
    rows = np.array([ids + [0] * (width - len(ids)) for ids in texts], np.int32)
    print(f"{len(texts)} passages, {int(real.sum()):,} tokens predicted\n\n{HEAD}", flush=True)
    found, full = [], None
    base: Base
    for base in get_args(Base):
        params = quantised.of_params(bench.lm.params, base)
        each = [jax.device_get(predicted(bench.lm.model, params, row[None])) for row in rows]
        log_probs, likeliest = (np.stack(side)[real] for side in zip(*each, strict=True))
        full = likeliest if full is None else full
        own = {
            "base": base,
            "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
            "perplexity": math.exp(-log_probs.mean(dtype=float)),
            "likeliest": float(np.mean(likeliest == full)),
        }
        found.append(own)
        shown = {"perplexity": f"{own['perplexity']:.3f}", "likeliest": f"{own['likeliest']:.1%}"}
        print(LINE.format(base=base, size=readable(own["bytes"]), **shown), flush=True)
    return {"bases": found}
