"""What every block puts out, for finding the first one where two implementations part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.model.deepseek import DeepseekV3


def trace(model: DeepseekV3, tokens: Sequence[int]) -> dict[str, Tensor]:
    """Outputs [T, D] of every block for one sequence, in order.

    Keys: "model.layers.{i}.self_attn" and "model.layers.{i}.mlp" for each layer, then "model.norm".
    """
    outputs: dict[str, Tensor] = {}
    watched: dict[str, nn.Module] = {}
    for i, layer in enumerate(model.model.blocks()):
        watched[f"model.layers.{i}.self_attn"] = layer.self_attn
        watched[f"model.layers.{i}.mlp"] = layer.mlp
    watched["model.norm"] = model.model.norm

    def keep_as(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def keep(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
            outputs[name] = out

        return keep

    hooks = [module.register_forward_hook(keep_as(name)) for name, module in watched.items()]
    try:
        with torch.no_grad():
            model.hidden(torch.tensor(tokens, device=model.lm_head.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
