"""The adapter's part of a layer in vLLM: what is added to its output, and what bf16 leaves of it (docs/maths.md)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlkit.config import LoraConfig
from rlkit.engine.vllm.adapter import adapter_arguments, add_adapter


def test_every_layer_of_a_stack_gets_its_own_part() -> None:
    torch.manual_seed(0)
    x_TI, before_TO, rank, widths = torch.randn(5, 6), torch.randn(5, 7), 2, (4, 3)
    matrices = [(torch.randn(rank, 6), torch.randn(width, rank)) for width in widths]
    room_a = [torch.zeros(1, 1, 8, 6) for _ in widths]  # vLLM's, for a rank of 8
    room_b = [torch.zeros(1, 1, width, 8) for width in widths]
    for (a, b), a_all, b_all in zip(matrices, room_a, room_b, strict=True):
        a_all[0, 0, :rank], b_all[0, 0, :, :rank] = a, b
    y_TO = before_TO.clone()
    add_adapter(None, y_TO, x_TI, room_a, room_b, 1.5, widths, buffer=None)
    expected_TO = before_TO + 1.5 * torch.cat([x_TI @ a.T @ b.T for a, b in matrices], dim=1)
    torch.testing.assert_close(y_TO, expected_TO)


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (129, 256), (257, 320), (512, 512)])
def test_vllm_makes_room_for_the_next_of_its_ranks(rank: int, room: int) -> None:
    arguments = adapter_arguments(LoraConfig(rank=rank, targets=("q_proj", "v_proj"), served="adapter"))
    assert (arguments["max_lora_rank"], arguments["lora_target_modules"]) == (room, ["q_proj", "v_proj"])


def share(got: Tensor, true: Tensor) -> float:
    return float((got.float() * true).sum() / (true * true).sum())


@pytest.mark.parametrize("turned", [False, True], ids=["A random", "A turned"])
def test_what_bf16_leaves_of_b_of_1e_5(turned: bool) -> None:
    """Merging loses it always; y = W x + B A x keeps half of it as soon as A has turned to what the inputs share."""
    torch.manual_seed(0)
    width, rank, scale = 1024, 16, 2.0
    w = (torch.randn(width, width) * 0.02).bfloat16()
    common = torch.randn(width)
    x_TI = (torch.randn(64, width) + common).bfloat16()
    a = (torch.rand(rank, width) * 2 - 1) / width**0.5 + (0.3 * common / common.norm() if turned else 0)
    a, b = a.bfloat16(), (1e-5 * torch.randn(width, rank).sign()).bfloat16()
    update = scale * b.float() @ a.float()
    true_TO = x_TI.float() @ update.T

    merged = (w.float() + update).bfloat16()
    assert (merged == w).float().mean() > 0.98
    y_TO = (x_TI.float() @ w.float().T).bfloat16()
    served_TO = y_TO.clone()
    add_adapter(None, served_TO, x_TI, [a[None, None]], [(scale * b)[None, None]], 1.0, [width])
    by_merging = share(x_TI.float() @ (merged.float() - w.float()).T, true_TO)
    by_adapter = share(served_TO.float() - y_TO.float(), true_TO)
    assert by_merging < 0.1
    assert by_adapter > 0.4 if turned else by_adapter < 0.1
