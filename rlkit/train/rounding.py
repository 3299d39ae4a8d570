"""How much rounding matters to a model: run it with every number rounded once more, and see what changes.

Two correct programs that hold the same weights do not compute the same log-probs: they add in another order, and every
sum is rounded somewhere else. How far that carries depends on the model. In a shallow one the last digit moves; in a
deep one with a few huge activations the difference is a hundred times larger. So instead of guessing a bound, the
trainer measures its own: the output of every module is moved by at most half the gap between two neighbouring numbers,
which is what one more rounding could do, and the change in the log-probs is what honest rounding looks like here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.model.precision import other_activations

UNIT = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp8": 2.0**-8, "fp8_weights": 2.0**-8}
"""The largest relative error of rounding to nearest, by the words of `trainer.dtype` and `engine.dtype`.

FP8 has that of bf16: outputs of modules are bf16, and two programs with the same codes differ in nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """One draw of the errors that rounding could make."""

    unit: float
    """No number moves by more than this share of itself; 0 moves none."""
    seed: int
    other_activations: bool = False
    """Computes with activations that are in FP8 where the model trains in bf16, or the other way round, as an engine
    may (`rlkit.model.precision.other_activations`)."""


@contextmanager
def rounded_anew(model: nn.Module, rounding: Rounding | None) -> Iterator[None]:
    """Multiplies the output of every module by 1 + unit r, r uniform in -1..1, inside the block; None changes nothing.

    That covers matrices, norms, blocks and the sums along the residual stream, for any architecture. What a module
    returns beside tensors, such as the choice of a router, stays: it changes because its inputs do.
    """
    if rounding is None:
        yield
        return
    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(rounding.seed)

    def moved(output: Any) -> Any:
        if isinstance(output, Tensor) and output.is_floating_point():
            r = torch.rand(output.shape, generator=random, device=device) * 2 - 1
            exact = output.float()
            return (exact + exact * (rounding.unit * r)).to(output.dtype)
        return output

    def after(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return (moved(output[0]), *output[1:]) if type(output) is tuple else moved(output)

    hooks = [module.register_forward_hook(after) for module in model.modules()] if rounding.unit else []
    try:
        with ExitStack() as stack:
            if rounding.other_activations:
                stack.enter_context(other_activations(model))
            yield
    finally:
        for hook in hooks:
            hook.remove()
