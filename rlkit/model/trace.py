"""What a model does inside, watched from outside by hooks: the output of every block, the choice of every router."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.model.backbone import Backbone
from rlkit.model.moe import Router
from rlkit.model.ragged import lay_out_pack
from rlkit.model.routing import Routing

BLOCK = re.compile(r"model\.(layers\.\d+\.(self_attn|mlp)|norm)")
"""The names of blocks in a trace; transformers and vLLM call their modules the same."""


def trace(backbone: Backbone, tokens: Sequence[int]) -> dict[str, Tensor]:
    """Runs one sequence and returns the output [T, D] of every block, in order.

    Keys: "model.layers.{i}.self_attn" and "model.layers.{i}.mlp" for each layer, then "model.norm". Where a layer has a
    router, "model.layers.{i}.mlp.gate" holds the margins of its choices, [T, 1].
    """
    with recorded_blocks(backbone) as outputs, torch.no_grad():
        tokens_T = torch.tensor(tokens, device=backbone.embed_tokens.weight.device)
        backbone(tokens_T, lay_out_pack(tokens_T, None))
    return outputs


@contextmanager
def recorded_blocks(backbone: Backbone) -> Iterator[dict[str, Tensor]]:
    """Records, inside the block, what `trace` returns of the layers that are here, in the order in which they run."""
    outputs: dict[str, Tensor] = {}
    watched: dict[str, nn.Module] = {}
    for i, layer in backbone.numbered_blocks().items():
        watched[f"model.layers.{i}.self_attn"] = layer.self_attn
        watched[f"model.layers.{i}.mlp"] = layer.mlp
    watched["model.norm"] = backbone.norm

    def keep_as(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def keep(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
            outputs[name] = out

        return keep

    def keep_margins_as(name: str) -> Callable[[Router, tuple[Any, ...]], None]:
        def keep(router: Router, args: tuple[Any, ...]) -> None:
            outputs[name] = router.margins(args[0]).unsqueeze(-1)

        return keep

    hooks = [module.register_forward_hook(keep_as(name)) for name, module in watched.items()]
    for name, module in backbone.named_modules(prefix="model"):
        if isinstance(module, Router):
            hooks.append(module.register_forward_pre_hook(keep_margins_as(name)))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def recorded_routing(routers: Mapping[str, Router]) -> Iterator[dict[str, Routing]]:
    """Records what each router decides in the one forward pass that runs inside the block, under its name.

    The scores keep their gradient. What is computed again during backward comes after the block and is not recorded.
    """
    found: dict[str, Routing] = {}

    def keep_as(name: str) -> Callable[[nn.Module, tuple[Any, ...], Routing], None]:
        def keep(_module: nn.Module, _args: tuple[Any, ...], routing: Routing) -> None:
            assert name not in found, f"{name} ran twice in one pass"
            found[name] = routing

        return keep

    hooks = [router.register_forward_hook(keep_as(name)) for name, router in routers.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
