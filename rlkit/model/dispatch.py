"""How rows of tokens reach the ranks of their experts and come back (arXiv:2412.19437, sections 2.1.2 and 3.2.2).

With one rank every expert is here and nothing moves. With R ranks each holds L = E / R experts, in order, and two
all-to-alls surround the experts: rows go out to where their experts are, outputs come back to where the rows were. No
row is dropped, whatever the load. The ranks must pass here equally often, or they wait for each other for ever.
Rows may travel to experts in FP8, and gradients to the experts' outputs (section 3.3.3): a byte for each number and a
power of two for each 128. The way back is not, because what arrives there is added up.

S rows leave this rank, one for each choice of each token, in the order of the E experts; M rows arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from rlkit.quant import dequantise_tiles, quantise_tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """Rows that stand before the experts of this rank, in the order of these experts."""

    rows_MD: Tensor
    gates_M1: Tensor
    """The weight of each row's expert."""
    ends_L: Tensor
    """Where the block of each expert ends."""
    order_M: Tensor | None = None
    """Where each row stood as it came, rank by rank; None where nothing has moved."""
    sent: Sequence[int] = ()
    """How many rows went to each rank."""
    received: Sequence[int] = ()
    """How many came from each."""


Exchange = Callable[[Tensor, Sequence[int], Sequence[int], Any], Tensor]
"""Sends the first `sent[0]` rows to rank 0, and so on; returns the `received` rows, rank by rank."""


class Dispatcher(Protocol):
    """Brings rows to the ranks of their experts and outputs back."""

    def out(self, rows_SD: Tensor, gates_S1: Tensor, counts_E: Tensor) -> Arrived:
        """Sends rows, sorted by expert, to the experts; `counts_E` says how many each expert gets from here."""
        ...

    def back(self, outputs_MD: Tensor, arrived: Arrived) -> Tensor:
        """Returns the experts' outputs to where the rows came from, in the order in which they left: [S, D]."""
        ...

    def unrounded(self) -> Dispatcher:
        """Returns the same way for rows that are not rounded to FP8."""
        ...


class Here:
    """The `Dispatcher` of a rank that holds all experts: nothing moves."""

    def out(self, rows_SD: Tensor, gates_S1: Tensor, counts_E: Tensor) -> Arrived:
        """Hands the rows on."""
        return Arrived(rows_MD=rows_SD, gates_M1=gates_S1, ends_L=counts_E.cumsum(0).int())

    def back(self, outputs_MD: Tensor, arrived: Arrived) -> Tensor:
        """Hands the outputs back."""
        return outputs_MD

    def unrounded(self) -> Here:
        """Returns this: what does not travel is not rounded."""
        return self


class AllToAll:
    """The `Dispatcher` of ranks that each hold their part of the experts."""

    def __init__(self, group: distributed.ProcessGroup, *, in_float8: bool = False) -> None:
        self.group, self.ranks = group, distributed.get_world_size(group)
        self.to_experts: Exchange = _exchanged_in_float8 if in_float8 else _exchanged
        """What carries rows to experts, and gradients to their outputs; the way back is `_exchanged`."""

    def __deepcopy__(self, _memo: Any) -> AllToAll:
        """Returns this: a copy of a model, such as the reference, talks to the same ranks."""
        return self

    def out(self, rows_SD: Tensor, gates_S1: Tensor, counts_E: Tensor) -> Arrived:
        """Sends each row to the rank of its expert; what arrives, rank by rank, is sorted by expert."""
        counts_RL = counts_E.view(self.ranks, -1)
        arriving_RL = torch.empty_like(counts_RL)
        distributed.all_to_all_single(arriving_RL, counts_RL.contiguous(), group=self.group)
        sent, received = counts_RL.sum(1).tolist(), arriving_RL.sum(1).tolist()
        local_L = torch.arange(counts_RL.shape[1], device=counts_E.device)
        experts_M = local_L.repeat(self.ranks).repeat_interleave(arriving_RL.flatten())
        order_M = experts_M.argsort(stable=True)
        rows = _Exchange.apply(rows_SD, sent, received, self.group, self.to_experts, _exchanged)
        gates = _Exchange.apply(gates_S1, sent, received, self.group, _exchanged, _exchanged)
        return Arrived(
            rows_MD=_Reorder.apply(rows, order_M),
            gates_M1=_Reorder.apply(gates, order_M),
            ends_L=arriving_RL.sum(0).cumsum(0).int(),
            order_M=order_M,
            sent=sent,
            received=received,
        )

    def back(self, outputs_MD: Tensor, arrived: Arrived) -> Tensor:
        """Sends the outputs the same way back."""
        assert arrived.order_M is not None
        outputs_MD = _Reorder.apply(outputs_MD, _inverse(arrived.order_M))
        return _Exchange.apply(outputs_MD, arrived.received, arrived.sent, self.group, _exchanged, self.to_experts)

    def unrounded(self) -> AllToAll:
        """Returns the way between the same ranks on which rows stay as they are."""
        return AllToAll(self.group)


class _Exchange(torch.autograd.Function):
    """Sends the first `sent[0]` rows to rank 0, and so on; the gradient takes the same way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sent: Sequence[int], received: Sequence[int], group: Any, go: Exchange, return_: Exchange
    ) -> Tensor:
        ctx.way, ctx.return_ = (received, sent, group), return_
        return go(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.return_(grads[0], *ctx.way), None, None, None, None, None


class _Reorder(torch.autograd.Function):
    """Puts row order[i] at place i; its gradient is a gather too, not autograd's scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, _inverse(ctx.saved_tensors[0])), None


def _exchanged(x: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Tensor:
    out = x.new_empty(sum(received), *x.shape[1:])
    distributed.all_to_all_single(out, x.contiguous(), list(received), list(sent), group=group)
    return out


def _exchanged_in_float8(x_TD: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Tensor:
    codes_TD, scales = quantise_tiles(x_TD, powers_of_two=True)
    # No collective knows FP8 numbers, but all know bytes.
    codes = _exchanged(codes_TD.view(torch.uint8), sent, received, group).view(codes_TD.dtype)
    return dequantise_tiles(codes, _exchanged(scales, sent, received, group), x_TD.dtype)


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
