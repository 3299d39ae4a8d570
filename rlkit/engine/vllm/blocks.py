"""Watches what vLLM's own model computes inside; it runs in vLLM's worker, without importing vllm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.model.trace import BLOCK


def start_watching(worker: Any) -> None:
    """Copies the output of every block from now on."""
    worker.watched_blocks = chunks = {}
    worker.stop_watching = _watch(worker.get_model(), chunks)


def stop_watching(worker: Any) -> dict[str, list[Tensor]]:
    """Stops and returns the copies, a tensor for each step; of several workers the first, as all have the same sums."""
    worker.stop_watching()
    chunks = worker.watched_blocks
    del worker.watched_blocks, worker.stop_watching
    return {} if worker.rank else chunks


def _watch(model: nn.Module, chunks: dict[str, list[Tensor]]) -> Callable[[], None]:
    """Copies the output of every block into `chunks`; call what is returned to stop."""
    handles = []
    for name, module in model.named_modules():
        if BLOCK.fullmatch(name):
            outputs = chunks.setdefault(name, [])

            def keep(_module: nn.Module, _inputs: Any, output: Any, outputs: list[Tensor] = outputs) -> None:
                output_TD = output[0] if isinstance(output, tuple) else output  # a norm also returns the residual
                outputs.append(output_TD.detach().to("cpu", torch.float32, copy=True))

            handles.append(module.register_forward_hook(keep))
    # Compiled code passes hooks by; vLLM runs the plain forward while this is set.
    inner: Any = model.get_submodule("model")
    compiled = not inner.do_not_compile
    inner.do_not_compile = True

    def stop() -> None:
        inner.do_not_compile = not compiled
        for handle in handles:
            handle.remove()

    return stop
