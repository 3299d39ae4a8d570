"""The least seconds of each phase of a step: what the hardware's ceilings allow, with the assumption said beside it.

A floor is no forecast: V3's pre-training, 180,000 hours of an H800 for 10^12 tokens, went at 0.39 of the ceiling of
bf16 and at half of that of FP8's, in which most of its products were computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlkit.model.config import DeepseekV3Config
from rlkit.plan.flops import backward_flops, decode_flops, experts_read, forward_flops
from rlkit.plan.hardware import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step does, in numbers."""

    sequences: int
    """Rollouts, or demonstrations."""
    prompt_tokens: float
    """Of a prompt, on average."""
    completion_tokens: float
    """Of a completion, on average."""
    samples_here: bool
    """Completions are sampled; demonstrations are given."""
    group_size: int = 1
    """Completions of a prompt; a prompt is read once."""
    reference: bool = False
    """Every token is also run through the reference."""

    @property
    def tokens(self) -> float:
        """Tokens of a step that are trained on, prompts included."""
        return self.sequences * (self.prompt_tokens + self.completion_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """The engines as phases see them."""

    engines: int
    gpus: int
    """Devices of one engine."""
    dtype: str
    max_num_seqs: int
    weights: int
    """Bytes on a device."""
    routed: int
    """How many of these belong to routed experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainers:
    """The trainer as phases see it."""

    gpus: int
    dtype: str
    recompute: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of a step."""

    name: str
    flops: float
    seconds: float
    assumption: str


def phases(
    work: Work,
    active: int,
    config: DeepseekV3Config | None,
    hardware: Hardware,
    trainers: Trainers,
    engines: Engines | None,
) -> list[Phase]:
    """Returns the phases of a step in the order in which they run."""
    found: list[Phase] = []
    if work.samples_here and engines is not None:
        found += _sampling(work, active, config, hardware, engines)
    found += _training(work, active, config, hardware, trainers)
    if work.samples_here and engines is not None:
        seconds = engines.weights / hardware.outside
        told = f"{_giga(engines.weights)} into every device of an engine at {_giga(hardware.outside)}/s"
        found.append(Phase(name="sync", flops=0.0, seconds=seconds, assumption=told))
    return found


def _sampling(
    work: Work, active: int, config: DeepseekV3Config | None, hardware: Hardware, engines: Engines
) -> Iterator[Phase]:
    gpus, rate = engines.engines * engines.gpus, hardware.rate(engines.dtype)
    prompts = work.sequences / work.group_size
    flops = prompts * work.prompt_tokens * forward_flops(active, config, work.prompt_tokens / 2)
    told = f"{prompts:,.0f} prompts of {work.prompt_tokens:,.0f} tokens; {_peak(engines.dtype, rate, gpus)}"
    yield Phase(name="prefill", flops=flops, seconds=flops / rate / gpus, assumption=told)
    context = work.prompt_tokens + work.completion_tokens / 2
    each = decode_flops(active, config, context)
    at_once = min(work.sequences / engines.engines, engines.max_num_seqs)
    waves = -(-work.sequences // (engines.engines * engines.max_num_seqs))
    read = engines.weights
    if config is not None and config.n_routed_experts:
        visited = experts_read(config.n_routed_experts, config.num_experts_per_tok, at_once)
        read = engines.weights - engines.routed * (1 - visited / config.n_routed_experts)
        number = 4 if engines.dtype == "fp32" else 2
        latent = config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * number
        read += at_once / engines.gpus * context * latent
    step = max(at_once * each / rate / engines.gpus, read / hardware.memory_bandwidth)
    told = (
        f"{waves * work.completion_tokens:,.0f} passes of {at_once:,.0f} sequences an engine; each reads "
        f"{_giga(read)} a device at {_giga(hardware.memory_bandwidth)}/s, or computes longer"
    )
    total = work.sequences * work.completion_tokens * each
    yield Phase(name="decode", flops=total, seconds=waves * work.completion_tokens * step, assumption=told)


def _training(
    work: Work, active: int, config: DeepseekV3Config | None, hardware: Hardware, trainers: Trainers
) -> Iterator[Phase]:
    rate = hardware.rate(trainers.dtype)
    context = (work.prompt_tokens + work.completion_tokens) / 2
    forward = work.tokens * forward_flops(active, config, context)
    peak = _peak(trainers.dtype, rate, trainers.gpus)
    if work.reference:
        told = f"one more forward pass; {peak}"
        yield Phase(name="reference", flops=forward, seconds=forward / rate / trainers.gpus, assumption=told)
    told = f"{work.tokens:,.0f} tokens with their prompts; {peak}"
    yield Phase(name="forward", flops=forward, seconds=forward / rate / trainers.gpus, assumption=told)
    backward = backward_flops(forward, recompute=trainers.recompute)
    told = "2 x forward" + (" and 1 x to recompute" if trainers.recompute else "")
    yield Phase(name="backward", flops=backward, seconds=backward / rate / trainers.gpus, assumption=f"{told}; {peak}")


def _peak(dtype: str, rate: float, gpus: int) -> str:
    return f"{gpus:,} x {_tera(rate)} TFLOP/s ({dtype})"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:,.0f}" if rate >= 1e14 else f"{rate / 1e12:.3g}"


def _giga(nbytes: float) -> str:
    if nbytes >= 1e12:
        return f"{nbytes / 1e12:,.2f} TB"
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"
