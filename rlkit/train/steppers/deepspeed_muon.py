"""Puts our Muon into DeepSpeed's ZeRO, and tells it which numbers of which matrices each flat tensor holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.runtime.zero import utils
from torch import Tensor, distributed, nn

from rlkit.config import TrainerConfig
from rlkit.model.matrices import Shape
from rlkit.train.steppers.muon import MuonAdamW, Piece, one_behind_the_other


def new_muon(groups: list[dict[str, Any]], cfg: TrainerConfig) -> MuonAdamW:
    """Makes the optimiser that ZeRO will call with its flat tensors; Newton-Schulz runs in the model's precision."""
    if MuonAdamW not in utils.ZERO_SUPPORTED_OPTIMIZERS:
        utils.ZERO_SUPPORTED_OPTIMIZERS.append(MuonAdamW)  # or it would call it untested
    return MuonAdamW(groups, beta2=cfg.beta2, dtype=torch.float32 if cfg.dtype == "fp32" else torch.bfloat16)


def pieces_of(zero: Any, shapes: Mapping[nn.Parameter, Shape]) -> dict[Tensor, list[Piece]]:
    """Returns this rank's pieces of all matrices, by the flat tensor they are in.

    ZeRO-1 and 2 lay the parameters of a group end to end and give each rank one run of the numbers. ZeRO-3 cuts every
    parameter alike and lays a rank's pieces end to end.
    """
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        flats, groups = zero.fp32_partitioned_groups_flat, zero.fp16_groups
    elif hasattr(zero, "bf16_groups"):
        flats, groups = zero.fp32_groups_flat_partition, zero.bf16_groups
    else:
        flats, groups = zero.single_partition_of_fp32_groups, zero.bit16_groups
    pieces: dict[Tensor, list[Piece]] = {}
    for number, (flat, parameters) in enumerate(zip(flats, groups, strict=True)):
        if parameters[0] not in shapes:
            continue
        if hasattr(parameters[0], "ds_id"):
            pieces[flat] = [_cut(zero, parameter, shapes) for parameter in parameters]
        else:
            group = zero.real_dp_process_group[number]
            places = one_behind_the_other(parameters, shapes)
            rank = distributed.get_rank(group)
            pieces[flat] = [Piece(matrices=places, size=flat.numel(), rank=rank, group=group)]
    return pieces


def _cut(zero: Any, parameter: nn.Parameter, shapes: Mapping[nn.Parameter, Shape]) -> Piece:
    """ZeRO-3: rank r has numbers r n .. (r + 1) n of the flattened parameter, of which the last may lie behind it."""
    _, place, size = zero.grad_position[zero.get_param_id(parameter)]
    group, rank = zero._get_param_partition_group(parameter), zero._get_param_partition_rank(parameter)
    places = one_behind_the_other([parameter], shapes)
    return Piece(matrices=places, size=size, place=place, rank=rank, group=group)
