"""Samples of different lengths, which lie end to end for linear layers and are padded to batches for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_PADDING = 1.25
"""The padded tokens per real token that one bucket may reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Says where each packed token sits in the padded batches; S is the number of padded places.

    Example: lengths (3, 2) make one bucket (2, 3) and `slots_T=[0, 1, 2, 3, 4]`: place 5 is padding.
    """

    lengths: tuple[int, ...]
    positions_T: Tensor
    """The place of each token in its own sample."""
    buckets: tuple[tuple[int, int], ...]
    """(samples, padded length) of each batch, laid one after the other over the S places."""
    slots_T: Tensor | None
    """The place of each token among the S; None when nothing moves, as with samples of one length."""

    def pad(self, x_T: Tensor) -> list[Tensor]:
        """Turns [T, ...] into one [N, L, ...] per bucket, with zeros behind each sample."""
        places = sum(num * width for num, width in self.buckets)
        x_S = x_T if self.slots_T is None else _Pad.apply(x_T, self.slots_T, places)
        split = x_S.split([num * width for num, width in self.buckets])
        return [part.unflatten(0, shape) for part, shape in zip(split, self.buckets, strict=True)]

    def unpad(self, batches: Sequence[Tensor]) -> Tensor:
        """Inverts `pad`: one [N, L, ...] per bucket becomes [T, ...]."""
        flat = [batch.flatten(0, 1) for batch in batches]
        x_S = flat[0] if len(flat) == 1 else torch.cat(flat)
        return x_S if self.slots_T is None else _Unpad.apply(x_S, self.slots_T)


def lay_out(lengths: Sequence[int], device: torch.device) -> Ragged:
    """Groups samples into batches of similar length, so that padding stays under a quarter of the tokens.

    Raises ValueError for a sample without tokens.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths={tuple(lengths)}: every sample needs at least one token; drop empty samples")
    # Longest first: a bucket is as wide as its first sample, and takes the next one as long as the padding that this
    # makes stays small beside the real tokens that it then holds.
    buckets: list[list[int]] = []
    width = real = 0
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[sample]
        if not buckets or (len(buckets[-1]) + 1) * width > MAX_PADDING * (real + length):
            buckets.append([])
            width, real = length, 0
        buckets[-1].append(sample)
        real += length
    shapes = tuple((len(bucket), lengths[bucket[0]]) for bucket in buckets)
    lengths_N = torch.tensor(lengths)
    starts_N = lengths_N.cumsum(0) - lengths_N
    positions_T = torch.arange(sum(lengths)) - starts_N.repeat_interleave(lengths_N)
    slots_T = None
    if len(set(lengths)) > 1:
        place, firsts_N = 0, torch.empty_like(starts_N)
        for bucket, (num, width) in zip(buckets, shapes, strict=True):
            firsts_N[torch.tensor(bucket)] = place + width * torch.arange(num)
            place += num * width
        slots_T = (firsts_N.repeat_interleave(lengths_N) + positions_T).to(device)
    return Ragged(lengths=tuple(lengths), positions_T=positions_T.to(device), buckets=shapes, slots_T=slots_T)


def lay_out_pack(tokens_T: Tensor, lengths: Sequence[int] | None) -> Ragged:
    """Lays these tokens out; None means one sample. Raises ValueError if the lengths do not sum to T."""
    lengths = (len(tokens_T),) if lengths is None else lengths
    if sum(lengths) != len(tokens_T):
        raise ValueError(f"lengths={tuple(lengths)} sum to {sum(lengths)}; they must sum to {len(tokens_T)} tokens")
    return lay_out(lengths, tokens_T.device)


class _Pad(torch.autograd.Function):
    """Writes x_S[slots] = x_T; its gradient is a gather, not autograd's scatter-add."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, slots_T: Tensor, places: int) -> Tensor:
        ctx.save_for_backward(slots_T)
        return x_T.new_zeros(places, *x_T.shape[1:]).index_copy_(0, slots_T, x_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slots_T,) = ctx.saved_tensors
        return grads[0].index_select(0, slots_T), None, None


class _Unpad(torch.autograd.Function):
    """Reads x_T = x_S[slots], the transpose of `_Pad`."""

    @staticmethod
    def forward(ctx: Any, x_S: Tensor, slots_T: Tensor) -> Tensor:
        ctx.save_for_backward(slots_T)
        ctx.places = len(x_S)
        return x_S.index_select(0, slots_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slots_T,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.places, *grads[0].shape[1:]).index_copy_(0, slots_T, grads[0]), None
