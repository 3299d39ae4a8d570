"""The bytes of an engine's device: weights, the cache of latents, and the logits of a step of decoding."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from rlkit.checks import whole
from rlkit.errors import UserError
from rlkit.model.config import DeepseekV3Config
from rlkit.plan.shards import Stored, published_index


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayout:
    """How the devices of one engine share a model out: attention by TP x DP, experts by EP or by TP."""

    gpus: int
    tensor_parallel: int = 1
    """Over how many devices heads, vocabulary and, without EP, experts' widths are divided."""
    expert_parallel: bool = False
    """Deals whole experts over all devices."""
    redundant_experts: int = 0
    """Further copies of experts, for the busy ones."""
    shared_is_routed: bool = False
    """The shared expert stands on the devices of the redundant ones, not on every device."""

    @property
    def data_parallel(self) -> int:
        """Groups of devices that each decode sequences of their own."""
        return self.gpus // self.tensor_parallel

    def experts_per_gpu(self, num_experts: int) -> float:
        """Returns how many experts of a layer a device holds; without EP a part of every one."""
        if not self.expert_parallel:
            return num_experts / self.tensor_parallel
        return (num_experts + self.redundant_experts) / self.gpus

    def check(self, config: DeepseekV3Config) -> None:
        """Raises UserError, with key, value and fix, for a layout that divides neither heads nor experts."""
        whole("engine_gpus", self.gpus, least=1)
        whole("engine.tensor_parallel", self.tensor_parallel, least=1)
        heads, ways = config.num_attention_heads, self.tensor_parallel
        if self.gpus % ways:
            raise UserError(
                f"engine.tensor_parallel={ways} does not divide engine_gpus={self.gpus}; change one of them"
            )
        if heads % ways:
            raise UserError(
                f"engine.tensor_parallel={ways} does not divide num_attention_heads={heads}; use a divisor of it"
            )
        held = config.n_routed_experts + self.redundant_experts
        if self.expert_parallel and held % self.gpus:
            raise UserError(
                f"redundant_experts={self.redundant_experts}: {config.n_routed_experts} experts and the redundant ones "
                f"are {held}, which engine_gpus={self.gpus} do not share evenly; "
                f"use {-config.n_routed_experts % self.gpus}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBytes:
    """What a device needs, in bytes."""

    weights: int
    cache: int
    """Of all sequences at their full length."""
    logits: int
    loading: int = 0
    """What loading needs for a moment beside the weights."""

    @property
    def peak(self) -> int:
        """All at once."""
        return self.weights + max(self.cache + self.logits, self.loading)


def weight_bytes(config: DeepseekV3Config, layout: EngineLayout, dtype: str) -> int:
    """Returns the bytes of weights on the fullest device, in "fp8" (scales included), "bf16" or "fp32".

    Attention, embedding and head are divided by TP, but for the two projections into latents, which all heads share.
    Dense MLPs and shared experts are whole under EP, as V3 serves them, and divided by TP without.
    """
    kinds, ways = _kinds(config, dtype), layout.tensor_parallel
    mlp_ways = 1 if layout.expert_parallel else ways
    shared = 0 if layout.shared_is_routed else kinds["shared"]
    divided = kinds["divided"] / ways + (kinds["mlp"] + shared) / mlp_ways
    return round(kinds["whole"] + divided) + routed_bytes(config, layout, dtype)


def routed_bytes(config: DeepseekV3Config, layout: EngineLayout, dtype: str) -> int:
    """Returns how many of these bytes belong to routed experts."""
    share = layout.experts_per_gpu(config.n_routed_experts) / config.n_routed_experts
    return round(_kinds(config, dtype)["expert"] * share)


def engine_bytes(
    config: DeepseekV3Config,
    layout: EngineLayout,
    *,
    kind: str,
    dtype: str,
    sequences: int,
    length: int,
) -> EngineBytes:
    """Returns the bytes of a device that decodes its share of `sequences` sequences of up to `length` tokens.

    A latent has kv_lora_rank + qk_rope_head_dim numbers per token and layer, for all heads, so TP does not divide it.
    """
    weights = weight_bytes(config, layout, dtype)
    own = -(-sequences // layout.data_parallel)
    number = 4 if dtype == "fp32" else 2
    width = config.kv_lora_rank + config.qk_rope_head_dim
    return EngineBytes(
        weights=weights,
        cache=own * length * width * number * config.num_hidden_layers,
        logits=4 * own * config.vocab_size // layout.tensor_parallel,
        loading=weights if kind == "torch" else 0,  # it copies the model that was read
    )


@cache
def _kinds(config: DeepseekV3Config, dtype: str) -> Counter[str]:
    """Adds bytes up by what may divide them; modules for multi-token prediction stay out, as without drafts."""
    kinds = Counter[str]()
    for name, stored in published_index(config, "fp8" if dtype == "fp8" else "bf16").items():
        if stored.layer is None or stored.layer < config.num_hidden_layers:
            kinds[_kind(name, stored)] += stored.nbytes * (2 if dtype == "fp32" else 1)
    return kinds


def _kind(name: str, stored: Stored) -> str:
    if stored.expert is not None:
        return "expert"
    if ".shared_experts." in name:
        return "shared"
    if len(stored.shape) < 2 or any(part in name for part in ("q_a_proj", "kv_a_proj", "mlp.gate.")):
        return "whole"
    return "mlp" if ".mlp." in name else "divided"
