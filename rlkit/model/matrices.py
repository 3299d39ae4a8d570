"""The matrices of a model's hidden layers, as a checkpoint has them, each on its own: what Muon trains."""

from __future__ import annotations

from torch import nn

from rlkit.model.base import CausalLM
from rlkit.model.experts import Experts
from rlkit.model.moe import Router

ROUTERS = frozenset(("gate", "router"))
"""What models of transformers call the module that scores experts."""
Shape = tuple[int, int]


def matrix_shapes(model: CausalLM) -> dict[nn.Parameter, Shape]:
    """Returns what Muon trains and the shape of the matrices in it, which lie one behind the other.

    These are the matrices of hidden layers as a checkpoint has them, each on its own: those of every expert too, gate
    and up apart. Embeddings, the head, routers, norms and biases are AdamW's, as in the post and in Moonlight.
    """
    shapes: dict[nn.Parameter, Shape] = {}
    spared = {model.head().weight}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, Experts):
            width, hidden = module.gate_up_proj.shape[1] // 2, module.gate_up_proj.shape[2]
            shapes |= {module.gate_up_proj: (width, hidden), module.down_proj: (hidden, width)}
        elif isinstance(module, nn.Embedding | Router) or name.rpartition(".")[2] in ROUTERS:
            spared |= set(own.values())
        else:
            shapes |= {p: (p.shape[0], p.shape[1]) for p in own.values() if p.ndim == 2 and min(p.shape) > 1}
    return {p: shape for p, shape in shapes.items() if p.requires_grad and p not in spared}


def unknown_stacks(model: CausalLM) -> list[str]:
    """Returns the names of trained parameters that may be stacks of matrices, and of which nobody here knows how."""
    known = matrix_shapes(model)
    return [name for name, p in model.named_parameters() if p.requires_grad and p.ndim > 2 and p not in known]
