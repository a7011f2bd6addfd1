"""One decoder for Llama 2/3/3.1/3.2, SmolLM2, Qwen2/2.5 and Qwen3: grouped-query attention, RoPE, RMSNorm, SwiGLU.

Layers are stacked along a leading axis L and scanned, so a model of any depth compiles once. Outside this file a model
is a pair: `model`, the module's graph (static, hashable), and `params`, a nested dict of arrays. `nnx.merge(model,
params)` makes the module again, inside whatever is being jitted, differentiated or vmapped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seal_jax.nn.lora import Adapter, LayerPrefix, LowRank, Prefix, Share, layer_adapters, stacked_prefix
from seal_jax.nn.losses import Head, next_token, token_losses
from seal_jax.nn.products import product
from seal_jax.nn.quantised import Quantised

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to a longer context."""

    kind: str  # "linear" | "llama3" | "yarn"
    factor: float
    low_freq_factor: float = 1.0  # this and the next: llama3 only
    high_freq_factor: float = 4.0
    original_context_length: int = 8192  # llama3 and yarn
    attention_factor: float = 1.0  # this and the rest: yarn only; queries and keys are multiplied by it
    beta_fast: float = 32.0  # turns in the original context from which on a pair keeps its frequency
    beta_slow: float = 1.0  # turns up to which it is slowed by the whole factor
    truncate: bool = True  # the pairs between the two are counted in whole ones


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder, under the field's names."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    tie_embeddings: bool = True
    context_length: int = 8192

    def kernels(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer, [in, out], under the names that adapters use."""
        d, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q_proj": (d, q),
            "k_proj": (d, kv),
            "v_proj": (d, kv),
            "o_proj": (q, d),
            "gate_proj": (d, f),
            "up_proj": (d, f),
            "down_proj": (f, d),
        }


Attention = Literal["xla", "cudnn"]  # what computes causal attention where nothing is masked: cudnn in half precision


class KV(NamedTuple):
    """Keys and values of one layer, or of all layers with a leading axis L.

    Each lies as attention multiplies it: whatever lies otherwise is copied at every decoded token.
    """

    k: Float[Array, "B K H S"]
    v: Float[Array, "B K S H"]

    def grown(self, slots: int) -> KV:
        """With so many empty slots behind."""
        none = [(0, 0)] * (self.k.ndim - 2)
        return KV(jnp.pad(self.k, [*none, (0, 0), (0, slots)]), jnp.pad(self.v, [*none, (0, slots), (0, 0)]))


# ---------------------------------------------------------------------------------------------------------------------
# Rotary positions


def rope_frequencies(config: ModelConfig) -> Float[Array, "H/2"]:
    """Radians that a position turns each pair of dimensions by. llama3 and yarn (arXiv 2309.00071, section 3.2) slow
    the slow pairs and blend in between."""
    inverse = config.rope_theta ** -(jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    if scaling.kind == "linear":
        return inverse / scaling.factor
    if scaling.kind == "yarn":
        low, high = _yarn_range(config.rope_theta, config.head_dim, scaling)
        slowed = jnp.clip((jnp.arange(config.head_dim // 2, dtype=jnp.float32) - low) / (high - low), 0, 1)
        return inverse / scaling.factor * slowed + inverse * (1 - slowed)
    if scaling.kind != "llama3":
        raise ValueError(f"RoPE scaling {scaling.kind!r}: expected 'linear', 'llama3' or 'yarn'")
    turns = scaling.original_context_length * inverse / (2 * math.pi)  # full turns within the original context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0, 1)
    return inverse / scaling.factor * (1 - blend) + inverse * blend


def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
    """What queries and keys are multiplied by (arXiv 2309.00071, equation 22). `weight` is a config's `mscale`."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_range(theta: float, head_dim: int, scaling: RopeScaling) -> tuple[float, float]:
    """The pair up to which frequencies are kept, and the one from which on they are divided by the whole factor."""
    low, high = (
        head_dim * math.log(scaling.original_context_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high if high != low else high + 0.001  # as transformers does


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T H/2"], scale: float = 1.0) -> Float[Array, "B T N H"]:
    """Turns each pair (i, i + H/2) by its angle: Hugging Face's order of dimensions. Yarn also scales it."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@jax.custom_batching.custom_vmap
def written(cache: KV, new: KV, at: Int[Array, ""] | int) -> KV:
    """The cache with new slots from `at` on. Has no derivative.

    Under `vmap` it is the same update with one axis more. JAX's own rule makes a scatter, for which XLA copies the
    whole cache at every token.
    """
    put = jax.lax.dynamic_update_slice_in_dim
    return KV(put(cache.k, new.k, at, axis=-1), put(cache.v, new.v, at, axis=-2))


@written.def_vmap
def _(size: int, batched: Sequence[Any], cache: KV, new: KV, at: Array | int) -> tuple[KV, Any]:
    if batched[2]:
        raise TypeError("rows of a cache are written at one slot; under vmap, `at` must be the same for all")
    whole = [jax.tree.map(lambda x, has: x if has else jnp.broadcast_to(x, (size, *x.shape)), *own)
             for own in ((cache, batched[0]), (new, batched[1]))]  # fmt: skip
    return written(*whole, at), KV(True, True)  # type: ignore[arg-type]  # which of its arrays have the axis


def attend(
    q: Float[Array, "B T N H"],
    past: KV,
    new: KV,
    mask: Bool[Array, "B T S"],
    at: Int[Array, ""] | int,
    prefix: LayerPrefix | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention of a few new tokens over a cache and themselves; N/K query heads share a key-value head.

    The new ones are not yet in the cache: read and written at once, it would be copied. A prefix is seen by all rows.
    """
    (B, T, _, H), K, slots = q.shape, past.v.shape[1], jnp.arange(mask.shape[2])
    before = mask & ((slots < at) | (slots >= at + T))
    among = jax.lax.dynamic_slice_in_dim(mask, at, T, axis=2)
    heads = q.reshape(B, T, K, -1, H).transpose(0, 2, 3, 1, 4)
    summed = partial(jnp.matmul, preferred_element_type=jnp.float32)
    rows = heads.reshape(B, K, -1, H)  # as plain products of matrices: each operand is read as it lies

    def scores(k: Array, mask: Array) -> Array:
        found = summed(rows, k) * H**-0.5
        return jnp.where(mask[:, None, None], found.reshape(*heads.shape[:4], -1), -jnp.inf)

    seen = [(past, before), (new, among)]
    if prefix is not None:
        seen.insert(0, (KV(prefix.k, prefix.v), jnp.broadcast_to(prefix.live, (B, T, len(prefix.live)))))
    sizes = [mask.shape[-1] for _, mask in seen]
    together = jnp.concatenate([scores(kv.k, mask) for kv, mask in seen], axis=-1)
    weights = jax.nn.softmax(together).astype(q.dtype).reshape(B, K, -1, sum(sizes))
    parts = jnp.split(weights, np.cumsum(sizes)[:-1], axis=-1)
    attended = reduce(jnp.add, (summed(part, kv.v) for part, (kv, _) in zip(parts, seen, strict=True)))
    return attended.astype(q.dtype).reshape(heads.shape).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _behind(
    prefix: LayerPrefix, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], mask: Bool[Array, "B T T"] | None
) -> tuple[Float[Array, "B p+T K H"], Float[Array, "B p+T K H"], Bool[Array, "B T p+T"]]:
    """Keys, values and mask of tokens that stand behind a prefix."""
    B, T = k.shape[:2]
    own = jnp.tril(jnp.ones((T, T), bool)) if mask is None else mask
    sides = [
        jnp.broadcast_to(side, (B, *side.shape)) for side in (prefix.k.transpose(2, 0, 1), prefix.v.swapaxes(0, 1))
    ]
    seen = [jnp.broadcast_to(side, (B, T, side.shape[-1])) for side in (prefix.live, own)]
    before, after = (jnp.concatenate(pair, axis=1) for pair in zip(sides, (k, v), strict=True))
    return before, after, jnp.concatenate(seen, axis=-1)


def possible(attention: Attention) -> Attention:
    """The same, but XLA's in a `shard_map` that leaves axes to the compiler: jax 0.11.2 cannot split cuDNN's there."""
    mesh = jax.sharding.get_abstract_mesh()
    return "xla" if mesh.manual_axes and mesh.auto_axes else attention


# What these two compute is cheap and wide: the backward pass does it again from their inputs, which are kept anyway.
_again = partial(jax.checkpoint, prevent_cse=False)


@partial(_again, static_argnums=2)
def _normalised(x: Float[Array, "... D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "... D"]:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale


@_again
def _gated(gate: Float[Array, "B T F"], up: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    return jax.nn.silu(gate) * up


# ---------------------------------------------------------------------------------------------------------------------
# Modules


class RMSNorm(nnx.Module):
    """`x / rms(x) · scale`, in float32."""

    def __init__(self, size: int, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return _normalised(x, self.scale[...], self.eps)


class Linear(nnx.Module):
    """`x W (+ bias) (+ the adapter's share)`."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (d_in, d_out), dtype) * 0.02)
        self.bias = nnx.Param(jnp.zeros(d_out, dtype)) if bias else None

    def __call__(self, x: Float[Array, "B T D"], lora: LowRank | None = None) -> Float[Array, "B T F"]:
        kernel = self.kernel.get_value()
        y = kernel(x) if isinstance(kernel, Quantised) else product(x, kernel)
        if self.bias is not None:
            y = y + self.bias[...]
        return y if lora is None else y + lora(x)


class Block(nnx.Module):
    """One layer: attention, then the gated MLP, each on a normalised input and added back."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, attention: Attention = "xla", rngs: nnx.Rngs):
        d, h, f = config.hidden_size, config.head_dim, config.intermediate_size
        q, kv = config.num_heads * h, config.num_kv_heads * h
        self.config, self.attention = config, attention
        self.input_norm = RMSNorm(d, config.rms_norm_eps, dtype)
        self.q_proj = Linear(d, q, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(d, kv, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(d, kv, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(q, d, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(h, config.rms_norm_eps, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(h, config.rms_norm_eps, dtype) if config.qk_norm else None
        self.post_attention_norm = RMSNorm(d, config.rms_norm_eps, dtype)
        self.gate_proj = Linear(d, f, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(d, f, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(f, d, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Float[Array, "B T H/2"],
        mask: Bool[Array, "B T S"] | None,
        share: Share,
        past: KV | None = None,
        at: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], KV]:
        """Without a past, keys are this call's own and `mask` None means causal; with one, they are written at `at`."""
        heads, (lora, prefix) = (*x.shape[:2], -1, self.config.head_dim), share
        if prefix is not None:
            prefix = prefix._replace(k=prefix.k.astype(x.dtype), v=prefix.v.astype(x.dtype))
        h = self.input_norm(x)
        q = self.q_proj(h, lora.get("q_proj")).reshape(heads)
        k = self.k_proj(h, lora.get("k_proj")).reshape(heads)
        v = self.v_proj(h, lora.get("v_proj")).reshape(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        scaling = self.config.rope_scaling
        scale = 1.0 if scaling is None else scaling.attention_factor
        q, k = rotate(q, angles, scale), rotate(k, angles, scale)
        kv = KV(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2))
        if past is None:
            if prefix is not None:
                k, v, mask = _behind(prefix, k, v, mask)
            attended = (
                jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=possible(self.attention))
                if mask is None
                else jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
            )
        else:
            assert mask is not None  # whoever has a past says which of its slots count
            attended = attend(q, past, kv, mask, at, prefix)
            # Written after it was read: where neither depends on the other, XLA copies the cache to be safe.
            read = attended.reshape(len(attended), 1, 1, -1).sum(axis=-1, keepdims=True)
            kv = written(past, KV(*(jnp.where(jnp.isnan(read), read, own) for own in kv)), at)
        x = x + self.o_proj(attended.reshape(*x.shape[:2], -1), lora.get("o_proj"))
        h = self.post_attention_norm(x)
        gated = _gated(self.gate_proj(h, lora.get("gate_proj")), self.up_proj(h, lora.get("up_proj")))
        return x + self.down_proj(gated, lora.get("down_proj")), kv


class Transformer(nnx.Module):
    """Token ids to hidden states (`__call__`, `decode`) and on to logits (`logits`)."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: jnp.dtype,
        activations: jnp.dtype | None = None,
        attention: Attention = "xla",
        rngs: nnx.Rngs,
    ):
        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(config, dtype=dtype, attention=attention, rngs=rngs)

        self.config = config
        shown = dtype if activations is None else activations  # all that follow are as the first
        self.mixed = shown != dtype
        self.embed = nnx.Embed(config.vocab_size, config.hidden_size, param_dtype=dtype, dtype=shown, rngs=rngs)
        self.blocks = stacked(rngs)
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        valid: Bool[Array, "B S"] | None = None,
        adapter: Adapter | None = None,
        fixed: Adapter | None = None,
        past: KV | None = None,
        at: Int[Array, ""] | int | None = None,
        dropout: float = 0.0,
        dropout_key: PRNGKeyArray | None = None,
        remat: bool = False,
        unroll: bool = False,
    ) -> tuple[Float[Array, "B T D"], KV]:
        """Hidden states after the last norm, and every layer's keys and values (leading axis L).

        `valid` False marks padding, on either side; None says there is none that matters (right-padded training rows:
        causality alone keeps real tokens from seeing pads). With a `past` of S slots the tokens take T of them, from
        `at` on (by default the last), and `valid` is said of all S. `fixed` is an adapter that `adapter` is trained on
        top of: the two add up, and dropout is the latter's alone. Every token sees an adapter's prefix (`lora.Prefix`).
        `remat` recomputes each layer in the backward pass. `unroll` writes the layers one after another into the
        program instead of a loop (`Compute.unroll`).
        """
        if isinstance(fixed, Prefix):
            raise ValueError("a prefix cannot be what another adapter is trained on top of; expected a LoRA adapter")
        T = tokens.shape[1]
        S = T if valid is None else valid.shape[1]
        if valid is None:
            positions, mask = jnp.broadcast_to(jnp.arange(T), tokens.shape), None
        else:
            own = jnp.arange(T) + (S - T if at is None else at)  # the slots of these tokens
            positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)[:, own]
            seen, itself = (test(jnp.arange(S), own[:, None]) for test in (jnp.less_equal, jnp.equal))
            mask = seen & valid[:, None, :] | itself  # a left pad sees itself: no row of softmax is empty
        angles = positions[..., None] * rope_frequencies(self.config)
        graph, stacked = nnx.split(self.blocks)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.num_layers)

        def layer(x: Array, slices: tuple[Any, ...]) -> tuple[Array, KV]:
            block, a, b, below_a, below_b, prefix, key, kv = slices
            below = None if fixed is None else layer_adapters(below_a, below_b, fixed.scale)
            lora = below or {}
            if adapter is not None:
                lora = layer_adapters(a, b, adapter.scale, key, dropout, below)
            return nnx.merge(graph, block)(x, angles, mask, Share(lora, prefix), kv, S - T if at is None else at)

        shares = [side for one in (adapter, fixed) for side in ((None, None) if one is None else (one.a, one.b))]
        body = jax.checkpoint(layer, prevent_cse=unroll) if remat else layer  # unrolled, XLA would keep it all
        layers = (nnx.to_pure_dict(stacked), *shares, stacked_prefix(adapter), keys, past)
        x, kv = jax.lax.scan(body, self.embed(tokens), layers, unroll=self.config.num_layers if unroll else 1)
        return self.final_norm(x), kv

    def layers(self) -> list[Block]:
        """The blocks, unstacked. Slice once before a decoding loop: a scan inside it copies the weights every token."""
        graph, stacked = nnx.split(self.blocks)
        weights = nnx.to_pure_dict(stacked)
        return [nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], weights)) for i in range(self.config.num_layers)]

    def decode(
        self,
        tokens: Int[Array, "B"],
        layers: list[Block],
        adapters: list[Share],
        cache: list[KV],
        at: Int[Array, ""],
        valid: Bool[Array, "B S"],
        positions: Int[Array, "B"],
    ) -> tuple[Float[Array, "B D"], list[KV]]:
        """One token a row, written into the cache's slot `at` (shared by all rows; `valid` says which slots count).

        `adapters` is an adapter, unstacked likewise (`lora.unstack`), or an empty share a layer.
        """
        angles = positions[:, None, None] * rope_frequencies(self.config)
        x, new_cache = self.embed(tokens[:, None]), []
        for block, shares, past in zip(layers, adapters, cache, strict=True):
            x, kv = block(x, angles, valid[:, None, :], shares, past, at)
            new_cache.append(kv)
        return self.final_norm(x)[:, 0], new_cache

    def head(self) -> Head:
        """What turns hidden states into logits."""
        if self.config.tie_embeddings:
            return Head(self.embed.embedding[...], "vd")
        return Head(self.lm_head.kernel[...], "dv")

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token logits, in float32."""
        return self.head().logits(hidden)

    def log_probs(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], *, chunk: int = 256
    ) -> Float[Array, "B T"]:
        """Log-probability of each target, in nats; at most `chunk` tokens at a time so that [B, T, V] never exists."""
        return -token_losses(next_token, self.head(), hidden, targets, chunk=chunk)


# ---------------------------------------------------------------------------------------------------------------------
# The pair (model, params)

Model = nnx.GraphDef[Any]


def graph(
    config: ModelConfig,
    dtype: jnp.dtype = jnp.float32,
    attention: Attention = "xla",
    activations: jnp.dtype | None = None,
) -> Model:
    """The static half of a model of weights in `dtype`. Allocates nothing. `activations` are as the weights, unless
    they are float32 over weights in half precision (products.py)."""
    make = partial(Transformer, config, dtype=dtype, activations=activations, attention=attention)
    return nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[0]


def random_params(seed: int, config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> dict[str, Any]:
    """Weights drawn afresh: for tests, and for measuring the speed of a size whose weights are not here."""
    make = jax.jit(lambda: nnx.split(Transformer(config, dtype=dtype, rngs=nnx.Rngs(seed)))[1])
    return nnx.to_pure_dict(make())
