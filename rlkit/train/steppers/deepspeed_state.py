"""Reads and writes what ZeRO keeps of one parameter: its fp32 weight and its moments, in pieces on the ranks.

ZeRO-1 and 2 keep the pieces of all parameters of a group in one flat tensor, whose piece of a parameter may be empty on
a rank; ZeRO-3 cuts every parameter alike. The optimiser inside sees the flat tensors alone, and counts steps for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, distributed, nn

from rlkit.train.steppers.base import STEP, WEIGHT
from rlkit.train.steppers.muon import BUFFER, MuonAdamW

ADAMW = ("exp_avg", "exp_avg_sq")


class InPieces(Mapping[str, Tensor]):
    """The tensors of a model that ZeRO-3 has cut: each is put together when it is asked for, and the last one kept.

    A stack of experts is asked for once for every expert in it, one after the other.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._kept = {name: model.get_buffer(name) for name in model.state_dict().keys() - self._parameters.keys()}
        self._names = list(model.state_dict())
        self._last: tuple[str, Tensor | None] = ("", None)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        if self._last[0] != name:
            with GatheredParameters([self._parameters[name]]):
                self._last = (name, self._parameters[name].detach().clone())
        assert self._last[1] is not None
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def gathered(zero: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Returns the whole fp32 weight of a parameter and its moments; all ranks that have a piece of it call this."""
    read: Any = safe_get_full_optimizer_state  # None, its types say, for what is no parameter of ZeRO
    state: dict[str, Any] = {WEIGHT: safe_get_full_fp32_param(parameter)}
    if zero.optimizer.state:
        _link(zero)
        state |= {name: read(parameter, name) for name in _moments(zero, parameter)}
        state[STEP] = _steps(zero, parameter)
    return state


def scattered(zero: Any, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
    """Writes this rank's piece of a whole weight and of its moments, and the weight as the model computes with it."""
    if STEP in state and not zero.optimizer.state:
        for flat in _flats(zero):
            names = zero.optimizer.moments(flat) if isinstance(zero.optimizer, MuonAdamW) else ADAMW
            zero.optimizer.state[flat] = {name: torch.zeros_like(flat) for name in names} | {STEP: torch.zeros(())}
    if STEP in state:
        _link(zero)
        flat = _flat_of(zero, parameter)
        if flat is not None:
            zero.optimizer.state[flat][STEP] = state[STEP].clone()
    names = [WEIGHT, *(_moments(zero, parameter) if STEP in state else ())]
    with torch.no_grad():
        if hasattr(parameter, "ds_id"):
            _write_cut(zero, parameter, {name: state[name] for name in names})
        else:
            for name in names:
                parameter.set_full_hp_param(state[name], None if name == WEIGHT else name)  # type: ignore[attr-defined]
            parameter.copy_(state[WEIGHT])


def _write_cut(zero: Any, parameter: Any, state: Mapping[str, Tensor]) -> None:
    """ZeRO-3: rank r has numbers r n .. (r + 1) n of the flattened parameter, of which the last may lie behind it."""
    rank = zero._get_param_partition_rank(parameter)
    for name, whole in state.items():
        key = None if name == WEIGHT else name
        piece, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        mine = whole.flatten()[rank * piece.numel() : (rank + 1) * piece.numel()]
        piece[: len(mine)].copy_(mine)
        if name == WEIGHT:
            parameter.ds_tensor.data[: len(mine)].copy_(mine)


def _moments(zero: Any, parameter: nn.Parameter) -> tuple[str, ...]:
    """Returns the names of the moments of a parameter, also on a rank that has no piece of it."""
    return (BUFFER,) if isinstance(zero.optimizer, MuonAdamW) and parameter in zero.optimizer.matrices else ADAMW


def _link(zero: Any) -> None:
    """Makes parameters of ZeRO-1 and 2 find their moments.

    DeepSpeed does it once, after the first step of the first group, when other groups have no moments yet; and moments
    that were dropped and begun anew are others.
    """
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _flats(zero: Any) -> list[Tensor]:
    """Returns the flat fp32 tensors that the optimiser works on."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return zero.fp32_partitioned_groups_flat
    return [flat for group in zero.optimizer.param_groups for flat in group["params"]]


def _flat_of(zero: Any, parameter: Any) -> Tensor | None:
    """Returns the flat tensor that holds this rank's piece of a parameter; None where it has no piece."""
    if hasattr(parameter, "ds_id"):
        return zero.fp32_partitioned_groups_flat[zero.grad_position[zero.get_param_id(parameter)][0]]
    mapping = parameter._hp_mapping
    return None if mapping is None else zero.optimizer.param_groups[mapping.param_group_index]["params"][0]


def _steps(zero: Any, parameter: Any) -> Tensor:
    """Returns how many steps the moments of a parameter have seen; a rank without a piece of it asks the others."""
    flat = _flat_of(zero, parameter)
    steps = torch.zeros(()) if flat is None else zero.optimizer.state[flat][STEP].detach().cpu().float()
    found = steps.clone().to(parameter.device)
    if not hasattr(parameter, "ds_id"):
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=parameter._dp_group)
    return found.cpu()
