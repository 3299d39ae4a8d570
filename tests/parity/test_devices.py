"""Parity with transformers and packing on every device there is, in fp32 and bf16; without a GPU those rows say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from rlkit.model import DeepseekV3
from tests.model.tiny import BASE, relative, seeded

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
DTYPES = [torch.float32, torch.bfloat16]
CONFIG = replace(BASE, q_lora_rank=24, n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4)
# bf16 keeps 8 bits: 2^-8 = 0.4 % at each of the dozen roundings between an input and an output of this model.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 12 * 2**-8}


def pair(folder: Path, device: str, dtype: torch.dtype) -> tuple[DeepseekV3, DeepseekV3ForCausalLM]:
    """Ours and theirs, from one file."""
    seeded(CONFIG).save_checkpoint(folder, dtype="fp32")
    theirs = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    torch.nn.Module.to(theirs, device)  # transformers' own annotation refuses a string
    return DeepseekV3.from_checkpoint(folder, dtype).to(device), theirs


def gap(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> float:
    """Of a whole tensor in fp32; of the median row in bf16, where rounding sends some tokens to other experts."""
    ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
    if dtype == torch.float32:
        return relative(ours, theirs)
    errors = (ours - theirs).flatten(0, -2).norm(dim=-1) / theirs.flatten(0, -2).norm(dim=-1).clamp_min(1e-12)
    return float(errors.median())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_logits_and_gradients_are_theirs(device: str, dtype: torch.dtype, tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, device, dtype)
    tokens = torch.randint(0, 96, (4, 40), generator=torch.Generator().manual_seed(0)).to(device)
    logits, expected = ours(tokens), theirs(tokens, use_cache=False).logits
    found = gap(logits, expected, dtype)
    print(f"{device} {dtype}: logits differ by {found:.1e}")
    assert found <= LIMITS[dtype]
    for out in (logits, expected):
        F.cross_entropy(out[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
    pairs = {name: (ours.get_parameter(name).grad, parameter.grad) for name, parameter in theirs.named_parameters()}
    if (
        dtype == torch.bfloat16
    ):  # a token that goes to another expert changes that expert's gradient: not what all share
        pairs = {name: grads for name, grads in pairs.items() if name == "model.layers.0.self_attn.o_proj.weight"}
    for name, (grad, their_grad) in pairs.items():
        assert grad is not None and their_grad is not None, name
        cosine = F.cosine_similarity(grad.float().flatten(), their_grad.float().flatten(), dim=0)
        assert cosine > 0.99 if dtype == torch.bfloat16 else gap(grad, their_grad, dtype) <= 1e-5, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_samples_of_a_pack_do_not_see_each_other(device: str, dtype: torch.dtype) -> None:
    model = seeded(CONFIG).to(dtype).to(device)
    lengths = (5, 40, 1, 7, 7, 23)
    tokens_T = torch.randint(0, 96, (sum(lengths),), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad():
        packed = model(tokens_T, lengths).split(lengths)
        for sample, logits in zip(tokens_T.split(lengths), packed, strict=True):
            assert gap(logits, model(sample), dtype) <= LIMITS[dtype], f"sample of {len(sample)} tokens"


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
def test_memory_of_a_pack_grows_with_its_tokens_not_with_their_square(device: str) -> None:
    model = seeded(CONFIG).to(torch.bfloat16).to(device)
    peaks = []
    for samples in (16, 64):
        tokens_T = torch.zeros(samples * 100, dtype=torch.long, device=device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(tokens_T, (100,) * samples).float().sum().backward()
        model.zero_grad()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    print(f"16 samples {peaks[0] / 2**20:.1f} MiB, 64 samples {peaks[1] / 2**20:.1f} MiB")
    assert peaks[1] <= 4.5 * peaks[0]
