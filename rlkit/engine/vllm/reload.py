"""Replaces the weights of vLLM's models, in its worker."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn


def forget_packed_experts(model: nn.Module) -> None:
    """Makes the next reload pack the experts anew: it packs them only where no packed copy is known."""
    moe = import_module("vllm.model_executor.layers.fused_moe.fused_moe_method_base")
    methods: list[Any] = [module for module in model.modules() if isinstance(module, moe.FusedMoEMethodBase)]
    for method in methods:
        method.moe_kernel = None


def heal(model: nn.Module) -> None:
    """Takes back what a reload that broke half-way has left, so that the next one replaces every tensor.

    While it loads, vLLM puts empty tensors in place of a layer's own, keeps what has arrived in a buffer, and changes
    back when the layer is complete. After a break the next reload would find layers that wait for less than all of
    their tensors, and end without an error and with a wrong model.
    """
    layerwise: Any = import_module("vllm.model_executor.model_loader.reload.layerwise")
    for module in model.modules():
        info = layerwise.get_layerwise_info(module)
        if info.can_load():
            if info.kernel_tensors is not None:
                layerwise._place_kernel_tensors(module, info)
            info.reset()
    layerwise.LOADING_LAYERS.clear()


def reload_drafter(worker: Any, weights: Sequence[tuple[str, Tensor]], cuda: bool) -> None:
    """Does for the model that drafts what `reload_weights` does for the main one; it runs in vLLM's worker."""
    reload = import_module("vllm.model_executor.model_loader.reload")
    config = import_module("vllm.config")
    model = worker.get_draft_model()
    heal(model)
    if not cuda:
        forget_packed_experts(model)
    with config.set_current_vllm_config(worker.vllm_config):
        reload.initialize_layerwise_reload(model)
        model.load_weights(iter(weights))
        reload.finalize_layerwise_reload(model, worker.speculative_config.draft_model_config)
