"""Which rank holds which published tensor, and that all of them together hold the model exactly once.

Layers are dealt as the trainer deals them (`rlkit.model.stages`): the first stage has the embedding and, at the other
end, the head with the modules for multi-token prediction, which use both. Experts are dealt in order, E / parts to each
rank of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch

from rlkit.model.config import DeepseekV3Config
from rlkit.model.experts import ExpertShare
from rlkit.model.files.folder import SCALE
from rlkit.model.files.names import published_names
from rlkit.model.size import NOT_LEARNED
from rlkit.model.stages import Stage
from rlkit.plan.layout import Layout
from rlkit.quant.fp8 import E4M3, block_grid

FP8, BF16, FP32 = E4M3, torch.bfloat16, torch.float32
ROUTER = ".mlp.gate.weight"
"""Ending of the names of routers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor of a checkpoint, and where it belongs."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: int | None
    """None for the embedding, the last norm and the head."""
    expert: int | None = None
    counted: bool = True
    """Is a parameter that a rank keeps and trains: no scale, no router's bias, and no repetition of another tensor, as
    the embedding and the head are in a module for multi-token prediction."""
    matrix: bool = False
    """Is a matrix of a hidden layer, as Muon trains them (`rlkit.model.matrices`)."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return _meta(self.shape, self.dtype).nbytes

    @property
    def numel(self) -> int:
        """Parameters."""
        return _meta(self.shape, self.dtype).numel() if self.counted else 0


@cache
def published_index(config: DeepseekV3Config, dtype: str = "fp8") -> Mapping[str, Stored]:
    """Returns every tensor of the published checkpoint in "fp8", scales included, or in "bf16"."""
    index: dict[str, Stored] = {}
    for name, place in published_names(config).items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
        quantised = place.fp8 and dtype == "fp8"
        bias = name.endswith(NOT_LEARNED)
        kind = FP8 if quantised else FP32 if bias else BF16
        counted = not place.copy and not bias
        matrix = counted and layer is not None and len(place.shape) == 2 and not name.endswith(ROUTER)
        index[name] = Stored(
            shape=place.shape, dtype=kind, layer=layer, expert=place.expert, counted=counted, matrix=matrix
        )
        if quantised:
            blocks = block_grid(place.shape)
            index[name + SCALE] = Stored(shape=blocks, dtype=FP32, layer=layer, expert=place.expert, counted=False)
    return MappingProxyType(index)


@cache
def stage_of(layer: int | None, config: DeepseekV3Config, layout: Layout) -> int:
    """Returns the stage that holds a layer; the first has what is no layer, and those of multi-token prediction."""
    return Stage(rank=0, size=layout.pipeline_stages).of(layer, config.num_hidden_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the ranks of one stage and one part of the experts hold."""

    stage: int
    part: int
    held: Mapping[str, Stored]
    """All that they hold, under published names."""
    published: Sequence[str]
    """What the one of them in the first replica hands out: dense tensors are dealt among the ranks that hold them."""

    @property
    def dense(self) -> int:
        """Parameters outside the routed experts."""
        return sum(stored.numel for stored in self.held.values() if stored.expert is None)

    @property
    def matrices(self) -> int:
        """Those of them in matrices of hidden layers."""
        return sum(stored.numel for stored in self.held.values() if stored.expert is None and stored.matrix)

    @property
    def experts(self) -> int:
        """Parameters of routed experts."""
        return sum(stored.numel for stored in self.held.values() if stored.expert is not None)

    @property
    def published_bytes(self) -> int:
        """Bytes that a rank of the first replica hands out."""
        return sum(self.held[name].nbytes for name in self.published)


def shares(config: DeepseekV3Config, layout: Layout, dtype: str = "fp8") -> list[Share]:
    """Returns the share of every stage and part, in the order of ranks."""
    layout.check(config)
    index = published_index(config, dtype)
    parts = layout.expert_parallel
    part_of: dict[int, int] = {}
    for part in range(parts):
        part_of |= dict.fromkeys(ExpertShare(rank=part, size=parts).of(config.n_routed_experts), part)
    places = [(stage, part) for stage in range(layout.pipeline_stages) for part in range(parts)]
    held: dict[tuple[int, int], dict[str, Stored]] = {place: {} for place in places}
    published: dict[tuple[int, int], list[str]] = {place: [] for place in places}
    turns = Counter[int]()
    for name, stored in index.items():
        stage = stage_of(stored.layer, config, layout)
        if stored.expert is not None:
            place = (stage, part_of[stored.expert])
            held[place][name] = stored
        else:
            for part in range(parts):
                held[stage, part][name] = stored
            place = (stage, turns[stage] % parts)
            turns[stage] += 1
        published[place].append(name)
    return [Share(stage=s, part=p, held=held[s, p], published=published[s, p]) for s, p in places]


def check_union(found: Iterable[Share], config: DeepseekV3Config, dtype: str = "fp8") -> int:
    """Returns how many tensors the published index has; raises ValueError unless the shares hand out each just once."""
    index = published_index(config, dtype)
    counts = Counter(name for share in found for name in share.published)
    missing = sorted(index.keys() - counts.keys())
    foreign = sorted(counts.keys() - index.keys())
    double = sorted(name for name, count in counts.items() if count > 1)
    for problem, names in (("missing", missing), ("not of this model", foreign), ("more than once", double)):
        if names:
            raise ValueError(f"{len(names)} tensors are {problem}: {', '.join(names[:3])}")
    return len(index)


def deal_flat(numbers: int, ranks: int) -> list[range]:
    """Returns what ZeRO gives each rank of a flat buffer: equal pieces in order, the last ones shorter or empty."""
    each = -(-numbers // ranks)
    return [range(min(rank * each, numbers), min((rank + 1) * each, numbers)) for rank in range(ranks)]


@cache
def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor without memory; a layout has a hundred thousand of a few dozen shapes."""
    return torch.empty(shape, dtype=dtype, device="meta")
