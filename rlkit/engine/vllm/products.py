"""Does every layer of vLLM's model compute what its tensors say? Each product again, on the engine's own inputs.

The audit of bytes says which tensors a layer has. Whether the kernel reads them, all of them and in the precision that
it claims, shows only in its output. T tokens, K inputs, N outputs of a layer, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.engine.examination import Product
from rlkit.engine.vllm.audit import EXPERTS, MTP_BLOCK, Held, expert_matrices, is_routed, matrix
from rlkit.quant.fp8 import dequantise_blocks
from rlkit.quant.matmul import matmul, quantise_tiles

FEW = 4
"""vLLM's FP8 kernels on the CPU take up to so many rows another way, with scales in fp32; such outputs say nothing."""


@dataclass(slots=True)
class Tally:
    """Adds up how the outputs of one layer compare with the formula; activations themselves are not kept."""

    experts: bool = False
    outputs: int = 0
    equal: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    chosen: list[Tensor] = field(default_factory=list)
    """Of routed experts: which were chosen for each token, [T, k]."""

    def add(self, y_TN: Tensor, expected_TN: Tensor) -> None:
        """Counts one output; `expected_TN` is as exact as the formula gives it."""
        self.outputs += y_TN.numel()
        self.equal += int((y_TN == expected_TN.to(y_TN)).sum())
        expected_TN = expected_TN.double()
        self.squared_error += float((y_TN.to(expected_TN) - expected_TN).square().sum())
        self.squared_norm += float(expected_TN.square().sum())

    def product(self) -> Product:
        """Returns the share of equal bits and the relative error."""
        error = (self.squared_error / max(self.squared_norm, 1e-30)) ** 0.5
        return Product(equal=self.equal / self.outputs, error=error, experts=self.experts)


def watch_products(
    model: nn.Module, tallies: dict[str, Tally], *, quantised: bool, within: str = ""
) -> Callable[[], None]:
    """Compares every linear layer and all routed experts whenever they run; call what is returned to stop.

    `quantised` says that the engine rounds activations to FP8, tile by tile; `within` names a part of the model that
    alone is watched. Compiled code passes hooks by, so vLLM runs the plain forward meanwhile.
    """
    linear: Any = import_module("vllm.model_executor.layers.linear").LinearBase
    stops: list[Callable[[], None]] = []
    for inner_name, module in model.named_modules():
        name = inner_name.replace(MTP_BLOCK, "")
        if not inner_name.startswith(within):
            continue
        if is_routed(module):
            stops.append(_watch_experts(module, tallies.setdefault(name, Tally(experts=True)), quantised))
        elif isinstance(module, (linear, nn.Linear)):
            stops.append(_watch_linear(module, tallies.setdefault(name, Tally()), quantised))
    compiled: list[Any] = [module for module in model.modules() if not getattr(module, "do_not_compile", True)]
    for module in compiled:
        module.do_not_compile = True

    def stop() -> None:
        for module in compiled:
            module.do_not_compile = False
        for ended in stops:
            ended()

    return stop


def watch_drafter(worker: Any, tallies: dict[str, Tally], quantised: bool) -> Callable[[], None]:
    """Does the same with the first MTP module, which alone drafts; it runs in vLLM's worker."""
    model = worker.get_draft_model()
    first = f"model.layers.{model.model.mtp_start_layer_idx}."
    return watch_products(model, tallies, quantised=quantised, within=first)


def router_of(experts: str) -> str:
    """Returns the checkpoint's name of the router that chooses among routed experts, from vLLM's name of these."""
    return f"{experts.removesuffix(EXPERTS).rpartition('.')[0]}.gate"


def _watch_linear(module: Any, tally: Tally, quantised: bool) -> Callable[[], None]:
    def compare(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        x_TK = inputs[0].flatten(0, -2)
        if len(x_TK) > FEW:
            tally.add(y.flatten(0, -2), _product(x_TK, matrix(module), quantised))

    return module.register_forward_hook(compare).remove


def _watch_experts(module: Any, tally: Tally, quantised: bool) -> Callable[[], None]:
    run = module.forward_modular

    def watched(x: Tensor, topk_weights: Tensor, topk_ids: Tensor, **rest: Any) -> Tensor:
        # Before the kernel runs, which may overwrite x.
        expected_TN = _experts(x, topk_weights, topk_ids.long(), module, quantised) if len(x) > FEW else None
        y_TN = run(x=x, topk_weights=topk_weights, topk_ids=topk_ids, **rest)
        if expected_TN is not None:
            tally.add(y_TN, expected_TN)
        tally.chosen.append(topk_ids.cpu().long())
        return y_TN

    module.forward_modular = watched

    def stop() -> None:
        del module.forward_modular  # the method of the class shows again

    return stop


def _experts(x_TK: Tensor, shares_Tk: Tensor, chosen_Tk: Tensor, module: Any, quantised: bool) -> Tensor:
    """Computes sum_i share_i E_i(x) over the chosen experts, E(x) = W_down (silu(W_gate x) * W_up x), in fp32."""
    out_TK = torch.zeros_like(x_TK, dtype=torch.float32)
    for expert in chosen_Tk.unique().tolist():
        rows, places = (chosen_Tk == expert).nonzero(as_tuple=True)
        parts = expert_matrices(module, expert)
        gate, up = (_product(x_TK[rows], parts[part], quantised).float() for part in ("gate_proj", "up_proj"))
        hidden = (nn.functional.silu(gate) * up).to(x_TK)
        out = _product(hidden, parts["down_proj"], quantised).float()
        out_TK.index_add_(0, rows, shares_Tk[rows, places, None].float() * out)
    return out_TK


def _product(x_TK: Tensor, held: Held, quantised: bool) -> Tensor:
    """Computes x W^T in bf16 from W multiplied out to bf16, or from codes on both sides."""
    if held.scales is None:
        return x_TK @ held.weight_NK.to(x_TK.dtype).T
    if quantised:
        return matmul(*quantise_tiles(x_TK), held.weight_NK, held.scales).to(x_TK.dtype)
    return x_TK @ dequantise_blocks(held.weight_NK, held.scales, x_TK.dtype).T
