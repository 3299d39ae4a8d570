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


def reload_drafter(worker: Any, weights: Sequence[tuple[str, Tensor]], cuda: bool) -> None:
    """Does for the model that drafts what `reload_weights` does for the main one; it runs in vLLM's worker."""
    reload = import_module("vllm.model_executor.model_loader.reload")
    config = import_module("vllm.config")
    model = worker.get_draft_model()
    if not cuda:
        forget_packed_experts(model)
    with config.set_current_vllm_config(worker.vllm_config):
        reload.initialize_layerwise_reload(model)
        model.load_weights(iter(weights))
        reload.finalize_layerwise_reload(model, worker.speculative_config.draft_model_config)
