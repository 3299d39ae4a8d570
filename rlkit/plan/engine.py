"""The bytes of an engine's device: weights, the cache of latents, and the logits of a step of decoding."""

from __future__ import annotations

from dataclasses import dataclass

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
            raise UserError(f"engine.tensor_parallel={ways} does not divide engine_gpus={self.gpus}; change one of them")
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
    scale = 2 if dtype == "fp32" else 1
    return round(scale * sum(_held(name, s, config, layout) for name, s in _kept(config, dtype).items()))


def routed_bytes(config: DeepseekV3Config, layout: EngineLayout, dtype: str) -> int:
    """Returns how many of these bytes belong to routed experts."""
    scale = 2 if dtype == "fp32" else 1
    kept = _kept(config, dtype).items()
    return round(scale * sum(_held(name, s, config, layout) for name, s in kept if s.expert is not None))


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


def _kept(config: DeepseekV3Config, dtype: str) -> dict[str, Stored]:
    """An engine keeps the modules for multi-token prediction out, unless it drafts with them."""
    index = published_index(config, "fp8" if dtype == "fp8" else "bf16")
    layers = config.num_hidden_layers
    return {name: stored for name, stored in index.items() if stored.layer is None or stored.layer < layers}


def _held(name: str, stored: Stored, config: DeepseekV3Config, layout: EngineLayout) -> float:
    ways, matrix = layout.tensor_parallel, len(stored.shape) == 2
    if stored.expert is not None:
        share = layout.experts_per_gpu(config.n_routed_experts) / config.n_routed_experts
        return stored.nbytes * share
    if ".shared_experts." in name and layout.shared_is_routed:
        return 0.0
    whole_everywhere = ("q_a_proj", "kv_a_proj", "mlp.gate.", *(["mlp."] if layout.expert_parallel else []))
    if not matrix or any(part in name for part in whole_everywhere):
        return float(stored.nbytes)
    return stored.nbytes / ways
