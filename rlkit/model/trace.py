"""What every block puts out, for finding the first one where two implementations part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlkit.model.deepseek import DeepseekV3


def trace(model: DeepseekV3, tokens: Sequence[int]) -> dict[str, Tensor]:
    """Outputs of every block for one sequence, in order: "model.layers.{i}.self_attn", ".mlp", last "model.norm"; [T, D]."""
    outputs: dict[str, Tensor] = {}
    watched: dict[str, nn.Module] = {}
    for i, layer in enumerate(model.model.layers):
        watched[f"model.layers.{i}.self_attn"] = layer.self_attn
        watched[f"model.layers.{i}.mlp"] = layer.mlp
    watched["model.norm"] = model.model.norm
    hooks = [
        module.register_forward_hook(lambda _module, _args, out, name=name: outputs.__setitem__(name, out))
        for name, module in watched.items()
    ]
    try:
        with torch.no_grad():
            model.hidden(torch.tensor(tokens, device=model.lm_head.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
