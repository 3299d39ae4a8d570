"""A rehearsal of a layout on the real shapes: every rank's share of the published checkpoint, without any memory."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.model.config import DeepseekV3Config
from rlkit.plan.layout import Layout
from rlkit.plan.shards import Share, check_union, deal_flat, published_index, shares
from rlkit.plan.trainer import Held, TrainerBytes, trainer_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """What one rank holds."""

    rank: int
    stage: int
    replica: int
    part: int
    """Its part of the experts."""
    tensors: int
    """Published tensors that it holds, scales included."""
    published: int
    """Bytes that it hands out, which is nothing outside the first replica."""
    weights: int
    gradients: int
    optimiser: int
    """Bytes of its piece of the optimiser, in main memory where that is offloaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What came of it."""

    layout: str
    tensors: int
    """Of the published index; the union of all shares is exactly these, each once."""
    nbytes: int
    """Of all of them."""
    ranks: tuple[RankShare, ...]


def rehearse(
    config: DeepseekV3Config, layout: Layout, *, kind: str, dtype: str, optimizer: str = "adamw", files: str = "fp8"
) -> Rehearsal:
    """Builds every rank's share; raises UserError for a layout that does not divide.

    Raises ValueError where the shares together are not the published index, each tensor once, or where ZeRO's pieces of
    a flat buffer are not that buffer: a mistake of ours.
    """
    found = shares(config, layout, files)
    tensors = check_union(found, config, files)
    index = published_index(config, files)
    of_all = [rank_share for share in found for rank_share in _ranks(share, layout, kind, dtype, optimizer)]
    return Rehearsal(
        layout=str(layout),
        tensors=tensors,
        nbytes=sum(stored.nbytes for stored in index.values()),
        ranks=tuple(sorted(of_all, key=lambda share: share.rank)),
    )


def _ranks(share: Share, layout: Layout, kind: str, dtype: str, optimizer: str) -> list[RankShare]:
    needs = _bytes(share, layout, kind, dtype)
    each = 8 if kind == "torch" else 12
    # What Muon trains lies in flat buffers of its own, and has one moment less.
    orthogonal, less = (share.matrices, each - 4) if optimizer == "muon" else (0, each)
    pieces, matrix_pieces = _pieces(share.dense - orthogonal, layout.replicas), _pieces(orthogonal, layout.replicas)
    expert_pieces = _pieces(share.experts, layout.expert_replicas)
    found = []
    for replica in range(layout.expert_replicas):
        place = replica * layout.expert_parallel + share.part
        found.append(
            RankShare(
                rank=share.stage * layout.replicas + place,
                stage=share.stage,
                replica=replica,
                part=share.part,
                tensors=len(share.held),
                published=0 if replica else share.published_bytes,
                weights=needs.weights,
                gradients=needs.gradients,
                optimiser=each * len(pieces[place]) + less * (len(matrix_pieces[place]) + len(expert_pieces[replica])),
            )
        )
    return found


def _bytes(share: Share, layout: Layout, kind: str, dtype: str) -> TrainerBytes:
    held = Held(dense=share.dense, experts=share.experts)
    return trainer_bytes(held, layout, kind=kind, dtype=dtype, reference=False, on_cpu=False)


def _pieces(numbers: int, ranks: int) -> list[range]:
    dealt = deal_flat(numbers, ranks)
    ends = [0, *(piece.stop for piece in dealt)]
    if ends[-1] != numbers or any(piece.start != end for piece, end in zip(dealt, ends, strict=False)):
        raise ValueError(f"{ranks} pieces of {numbers} numbers leave some out, or hold some twice")
    return dealt
