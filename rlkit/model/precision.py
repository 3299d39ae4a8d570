"""Computing in FP8: which matrices do, and how they are told to (arXiv:2412.19437, section 3.3.1).

One table decides, `rlkit.model.files.names`, by exact names: what a published checkpoint holds in FP8 is computed in
FP8, and nothing else. So trainer, export and engine cannot mean different matrices, and no pattern takes the router
`mlp.gate` for an `mlp.gate_proj`. Embeddings, head, routers, norms, `eh_proj` and the attention itself stay high.

Parameters stay what they were, bf16 leaves under the same names: an optimiser, ZeRO and a checkpoint see nothing of it.
What is not covered: decoding, which multiplies with parts of `kv_b_proj`; a trainer's model does not decode.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlkit.model.base import CausalLM
from rlkit.model.deepseek import DeepseekV3
from rlkit.model.experts import Experts, Product, grouped_product
from rlkit.model.files.names import Place, published_names
from rlkit.quant import float8_grouped, float8_linear, matmul, quantise_tiles, quantise_weight, straight_through
from rlkit.quant.fp8 import dequantise_blocks

LinearProduct = Callable[[Tensor, Tensor], Tensor]
"""Multiplies rows [T, K] with a matrix [N, K]: [T, N]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """How a precision multiplies, in linear layers and in routed experts."""

    linear: LinearProduct
    experts: Product


def _linear_with_stored_weights(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    return F.linear(x_TK, straight_through(weight_NK))


def _experts_with_stored_weights(x_MK: Tensor, weight_LNK: Tensor, ends_L: Tensor) -> Tensor:
    return grouped_product(x_MK, straight_through(weight_LNK), ends_L)


ARITHMETICS: Mapping[str, Arithmetic] = {
    "fp8": Arithmetic(linear=float8_linear, experts=float8_grouped),
    "fp8_weights": Arithmetic(linear=_linear_with_stored_weights, experts=_experts_with_stored_weights),
}
"""By the words of `trainer.dtype`, all of `rlkit.quant.fp8.FLOAT8`: V3's recipe; and FP8 weights with power-of-two
scales times bf16 activations."""


def _dispatched_experts(x_MK: Tensor, weight_LNK: Tensor, ends_L: Tensor) -> Tensor:
    return float8_grouped(x_MK, weight_LNK, ends_L, powers_of_two=True)


@torch.no_grad()
def _with_high_activations(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    return F.linear(x_TK, dequantise_blocks(*quantise_weight(weight_NK), x_TK.dtype))


@torch.no_grad()
def _with_low_activations(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    stored = quantise_weight(weight_NK, powers_of_two=True)
    return matmul(*quantise_tiles(x_TK), *stored, out_dtype=x_TK.dtype)


def _by_expert(linear: LinearProduct) -> Product:
    def product(x_MK: Tensor, weight_LNK: Tensor, ends_L: Tensor) -> Tensor:
        rows = x_MK.tensor_split(ends_L.tolist()[:-1])
        return torch.cat([linear(x, weight_NK) for x, weight_NK in zip(rows, weight_LNK, strict=True)])

    return product


COUNTERPARTS: Mapping[Any, Any] = {
    float8_linear: _with_high_activations,
    float8_grouped: _by_expert(_with_high_activations),
    _dispatched_experts: _by_expert(_with_high_activations),
    _linear_with_stored_weights: _with_low_activations,
    _experts_with_stored_weights: _by_expert(_with_low_activations),
}
"""For each product of `ARITHMETICS` the one with the same FP8 weights and the activations of the other; without
gradients."""


class Float8ModelLinear(nn.Linear):
    """A linear layer of a model that multiplies as `product` says; its parameter is that of the layer it was."""

    product: LinearProduct

    def forward(self, input: Tensor) -> Tensor:
        """Computes x W^T: [T, K] -> [T, N]."""
        return self.product(input, self.weight)


def compute_in_float8(model: CausalLM, mode: str, *, dispatched: bool = False) -> None:
    """Makes exactly the matrices that FP8 checkpoints hold in FP8 compute so; `mode` is a key of `ARITHMETICS`.

    With `dispatched` rows reach their experts in FP8, with power-of-two scales, and are multiplied as they came.
    Raises TypeError for a model that has no such table.
    """
    if not isinstance(model, DeepseekV3):
        raise TypeError(f"{type(model).__name__} has no table of the matrices that FP8 is for")
    names, arithmetic = float8_parameters(published_names(model.config)), ARITHMETICS[mode]
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            assert {f"{name}.gate_up_proj", f"{name}.down_proj"} <= names, f"{name} is not in the table"
            module.product = _dispatched_experts if dispatched else arithmetic.experts
        elif f"{name}.weight" in names:
            assert type(module) is nn.Linear, f"{name} is a {type(module).__name__}"
            # Another class and not another module: names, hooks and whoever holds the module stay as they are, and so
            # does the layer of a deep copy, such as the reference, which has to multiply with its own weight.
            module.__class__ = Float8ModelLinear
            vars(module)["product"] = arithmetic.linear


@contextmanager
def other_activations(model: nn.Module) -> Iterator[None]:
    """Multiplies inside the block with the same FP8 weights, and with activations as an engine of the other kind does.

    A model in "fp8" keeps them in bf16, on their way to experts as well; one in "fp8_weights" rounds them to FP8.
    Forward only; a model that does not compute in FP8 stays what it is.
    """
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        own = vars(module)
        if own.get("product") in COUNTERPARTS:
            kept.append((own, {name: own[name] for name in ("product", "dispatcher") if name in own}))
            own["product"] = COUNTERPARTS[own["product"]]
            if isinstance(module, Experts):
                own["dispatcher"] = module.dispatcher.unrounded()
    try:
        yield
    finally:
        for own, before in kept:
            own.update(before)


def float8_parameters(table: Mapping[str, Place]) -> frozenset[str]:
    """Returns the names of our parameters that hold what an FP8 checkpoint has in FP8."""
    return frozenset(place.name for place in table.values() if place.fp8)


def float8_summary(table: Mapping[str, Place]) -> str:
    """Says how many published matrices are in FP8, of which modules, and which kinds of weights are not."""
    low = Counter(_kind(name).rpartition(".")[0] for name, place in table.items() if place.fp8)
    high = {_kind(name): None for name, place in table.items() if not place.fp8 and not place.copy}
    norms = [kind for kind in high if kind.endswith("norm")]
    rest = [kind for kind in high if kind not in norms]
    listed = ", ".join(f"{kind} {count:,}" for kind, count in low.items())
    return f"{low.total():,} matrices in FP8 ({listed}); not: {', '.join(rest)} and {len(norms)} kinds of norms"


def _kind(name: str) -> str:
    """Returns what names of one kind share: "model.layers.3.mlp.experts.7.up_proj.weight" -> "mlp.experts.up_proj"."""
    return re.sub(r"^model\.(layers\.\d+\.)?|\.weight$|(?<=experts)\.\d+", "", name)
