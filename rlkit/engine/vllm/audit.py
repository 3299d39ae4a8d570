"""The tensors that vLLM's model really computes with, under the names by which they were sent.

A parameter of the right name proves nothing: after loading, vLLM multiplies with packed copies, and some of what is
still there under the old name is not read any more. What is read on the CPU:
    linear layers in FP8   `weight`, packed [N/32][K/2][32][2], and `weight_scale_inv`
    routed experts         `w13_weight` and `w2_weight`, packed alike, and the scales inside the kernel's own settings
    other linear layers    a closure, `cpu_linear`; multiplying a unit matrix gives the weight back exactly
    the correction bias    the tensor that the router adds to its scores
Layers that vLLM fuses (gate and up, the two first projections of MLA) come apart again here.

What is not covered: slices of tensor parallelism, which the configuration refuses beside FP8, and the layouts that
kernels on GPUs make of a matrix; there it is taken as it was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.model.files.folder import SCALE
from rlkit.model.files.sent import BIAS, fingerprints
from rlkit.quant.fp8 import BLOCK, E4M3

EXPERTS = ".routed_experts"
"""Ending of vLLM's names of routed experts; below them it keeps them in two stacks."""
FUSED = {"gate_up_proj": ["gate_proj", "up_proj"]}
"""What vLLM's class for MTP modules fuses, and does not say."""
MTP_BLOCK = ".mtp_block"
"""vLLM puts the block of an MTP module one level deeper than the checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A matrix as it is multiplied with: codes with scales, or a weight in bf16 or fp32 without them."""

    weight_NK: Tensor
    scales: Tensor | None

    def rows(self, start: int, stop: int) -> Held:
        """Returns some of the rows; they begin at a whole block."""
        scales = None if self.scales is None else self.scales[start // BLOCK : -(-stop // BLOCK)]
        return Held(weight_NK=self.weight_NK[start:stop], scales=scales)

    def named(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yields weight and scales under the names of a checkpoint."""
        yield f"{name}.weight", self.weight_NK
        if self.scales is not None:
            yield f"{name}.weight{SCALE}", self.scales


def live_prints(worker: Any, drafts: bool) -> dict[str, str]:
    """Fingerprints what the models of one worker compute with; it runs there."""
    prints = fingerprints(live_tensors(worker.get_model()))
    if not drafts:
        return prints
    drafter = fingerprints(live_tensors(worker.get_draft_model()))
    # It shares the embedding and the head of the main model.
    return prints | {name: print_ for name, print_ in drafter.items() if name.startswith("model.layers.")}


def live_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor that the model computes with under the name by which it was sent, one at a time."""
    fused = {**FUSED, **getattr(model, "packed_modules_mapping", {})}
    for inner_name, layer in model.named_modules():
        module: Any = layer
        name = inner_name.replace(MTP_BLOCK, "")
        if is_routed(module):
            for expert in range(len(module.w13_weight)):
                for part, held in expert_matrices(module, expert).items():
                    yield from held.named(f"{name.removesuffix(EXPERTS)}.{expert}.{part}")
        elif is_matrix(module):
            yield from _parts(name, module, fused)
        else:
            yield from ((f"{name}.{own}", tensor) for own, tensor in module.named_parameters(recurse=False))
        if (bias := _bias(module)) is not None:
            yield f"{name.removesuffix('.experts')}.gate.{BIAS}", bias


def is_routed(module: Any) -> bool:
    """Says whether a module holds routed experts."""
    return isinstance(getattr(module, "w13_weight", None), Tensor)


def is_matrix(module: Any) -> bool:
    """Says whether a module multiplies with one matrix; the embedding, which looks up rows, counts as one."""
    return hasattr(module, "quant_method") and isinstance(getattr(module, "weight", None), Tensor)


def matrix(module: Any) -> Held:
    """Returns the matrix of a linear layer, in the order of its checkpoint."""
    weight, linear = module.weight, getattr(module, "cpu_linear", None)
    if weight.dtype == E4M3:
        packed = weight.device.type == "cpu" and not getattr(module, "_cpu_skip_gemm_dispatch", False)
        return Held(weight_NK=unpacked(weight) if packed else weight, scales=module.weight_scale_inv)
    if linear is None:
        return Held(weight_NK=weight, scales=None)
    inputs = module.embedding_dim if hasattr(module, "embedding_dim") else module.input_size
    unit_KK = torch.eye(inputs, dtype=weight.dtype)
    return Held(weight_NK=linear(unit_KK, weight, None).T.contiguous(), scales=None)


def expert_matrices(module: Any, expert: int) -> dict[str, Held]:
    """Returns the three matrices of one routed expert, with the scales that the kernel reads."""
    # The parameters w13_weight_scale_inv and w2_weight_scale_inv are not these: after a reload nobody reads them.
    kernel = module.quant_method.moe_kernel
    settings = None if kernel is None else kernel.fused_experts.quant_config
    first_scales, second_scales = (None, None) if settings is None else (settings.w1_scale, settings.w2_scale)
    both = _stacked(module.w13_weight, first_scales, expert)
    width = both.weight_NK.shape[0] // 2
    return {
        "gate_proj": both.rows(0, width),
        "up_proj": both.rows(width, 2 * width),
        "down_proj": _stacked(module.w2_weight, second_scales, expert),
    }


def unpacked(packed_NK: Tensor) -> Tensor:
    """Undoes the order in which the CPU's FP8 kernels want a matrix: [N/32][K/2][32][2] -> [N, K]."""
    rows, columns = packed_NK.shape
    bytes_NK = packed_NK.view(torch.uint8).view(rows // 32, columns // 2, 32, 2).transpose(1, 2).reshape(rows, columns)
    return bytes_NK.view(packed_NK.dtype)


def _stacked(weights: Tensor, scales: Tensor | None, expert: int) -> Held:
    weight = weights[expert]
    packed = weight.dtype == E4M3 and weight.device.type == "cpu"
    return Held(weight_NK=unpacked(weight) if packed else weight, scales=None if scales is None else scales[expert])


def _parts(name: str, module: Any, fused: Mapping[str, list[str]]) -> Iterator[tuple[str, Tensor]]:
    held = matrix(module)
    if (vocabulary := getattr(module, "org_vocab_size", None)) is not None:  # vLLM pads embedding and head
        held = held.rows(0, vocabulary)
    path, _, last = name.rpartition(".")
    start = 0
    parts = fused.get(last, [last])
    widths = module.logical_widths if parts != [last] else [held.weight_NK.shape[0]]
    for part, width in zip(parts, widths, strict=True):
        yield from held.rows(start, start + width).named(f"{path}.{part}" if path else part)
        start += width


def _bias(module: Any) -> Tensor | None:
    """Returns the correction bias that a router reads. vLLM's router is no module, but hangs on one."""
    return getattr(getattr(module, "router", None), BIAS, None)
