"""How large a model is, counted from the names and shapes of its weights: nothing is built for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

Shapes = Mapping[str, Sequence[int]]
"""Published names and shapes of weights."""
ROUTED = ".experts."
"""The names of all weights of routed experts hold this, in our models and in those of transformers."""
NOT_LEARNED = "e_score_correction_bias"
"""The bias of a router follows the load of the experts, not a gradient, and papers do not count it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The numbers that a model needs: those it has learned, and those it remembers of each token."""

    parameters: int
    """All parameters without those of multi-token prediction, as the paper counts them."""
    active_parameters: int
    """The parameters that one token passes through: its experts, its own row of the embedding, and all the rest."""
    mtp_parameters: int
    """The parameters of the modules for multi-token prediction; embedding and head belong to the main model."""
    cache_name: str
    """What the cache of decoding is called: "latent cache" or "KV cache"."""
    cache_numbers: int
    """How many numbers the cache holds of each token in each layer."""


def count_parameters(shapes: Shapes) -> int:
    """Returns how many parameters weights of these shapes have."""
    return sum(prod(shape) for name, shape in shapes.items() if not name.endswith(NOT_LEARNED))


def count_active(shapes: Shapes, *, chosen_share: float, unread: int) -> int:
    """Returns how many of these parameters one token passes through.

    `chosen_share` is the share of the routed experts that a token visits. `unread` counts the numbers of the embedding
    that it does not read, which are all rows but its own; a head that is tied to the embedding reads every row.
    """
    routed = count_parameters({name: shape for name, shape in shapes.items() if ROUTED in name})
    return round(count_parameters(shapes) - (1 - chosen_share) * routed) - unread
