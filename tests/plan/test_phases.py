"""FLOPs against torch's own counter, floors and costs by hand, and V3's published hours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.plan.cost import R1_STAGES, V3_STAGES, Cost
from rlkit.plan.flops import backward_flops, decode_flops, experts_read, forward_flops
from rlkit.plan.hardware import KNOWN
from rlkit.plan.phases import Engines, Trainers, Work, phases
from tests.model.tiny import BASE

DENSE = replace(BASE, first_k_dense_replace=3, q_lora_rank=24)
"""torch's counter does not know the grouped product of experts."""
V3 = DeepseekV3Config()


def active(config: DeepseekV3Config) -> int:
    return DeepseekArchitecture(config=config).size().active_parameters


def test_flops_are_those_that_torch_counts() -> None:
    torch.manual_seed(0)
    model, samples, length = DeepseekV3(DENSE), 4, 16
    tokens_T = torch.randint(96, (samples * length,))
    with FlopCounterMode(display=False) as counter:
        logits_TV = model(tokens_T, (length,) * samples)
    forward = counter.get_total_flops()
    # The kernel for short samples multiplies the masked half too; a norm multiplies by its gains one by one.
    gains = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    assert samples * length * (forward_flops(active(DENSE), DENSE, context=length) - 2 * gains) == forward
    with FlopCounterMode(display=False) as counter:
        logits_TV.sum().backward()
    norms = 2 * gains * samples * length  # the gradient of the gains is a product
    assert counter.get_total_flops() == backward_flops(forward, recompute=False) + norms == 2 * forward + norms


def test_experts_are_counted_by_how_many_a_token_visits() -> None:
    """2 of 8 experts and the shared one, 3 matrices each, in 2 layers; the router; all else as in a dense model."""
    hidden, inner = BASE.hidden_size, BASE.moe_intermediate_size
    dense = replace(BASE, first_k_dense_replace=3)
    per_layer = 3 * 3 * hidden * inner + 8 * hidden - 3 * hidden * BASE.intermediate_size
    assert forward_flops(active(BASE), BASE, 5) - forward_flops(active(dense), dense, 5) == 2 * 2 * per_layer


def test_decoding_meets_latents() -> None:
    base = 2 * (active(V3) - 7168)
    assert decode_flops(active(V3), V3, 1000) == base + 2 * 61 * 128 * (2 * 512 + 64) * 1000
    assert decode_flops(100, None, 1000) == forward_flops(100, None, 1000) == 200


def test_a_few_tokens_visit_a_few_experts() -> None:
    assert experts_read(256, 8, 1) == pytest.approx(8)
    assert experts_read(256, 8, 10_000) == pytest.approx(256)
    torch.manual_seed(0)
    tried = [len({int(e) for _ in range(32) for e in torch.randperm(256)[:8]}) for _ in range(50)]
    assert experts_read(256, 8, 32) == pytest.approx(sum(tried) / 50, rel=0.02)


def test_what_v3_reached_of_the_ceiling() -> None:
    """180,000 GPU-hours for 10^12 tokens in samples of 4,096, forward and backward without recomputation."""
    forward = forward_flops(active(V3), V3, 4096 / 2)
    rate = 1e12 * (forward + backward_flops(forward, recompute=False)) / (180_000 * 3600)
    assert rate / KNOWN["h800"].bf16 == pytest.approx(0.39, abs=0.005)
    assert rate / KNOWN["h800"].fp8 == pytest.approx(0.195, abs=0.005)


def test_floors_by_hand() -> None:
    hardware = KNOWN["h800"]
    work = Work(
        sequences=512, prompt_tokens=1000, completion_tokens=3000, samples_here=True, group_size=16, reference=True
    )
    engines = Engines(engines=2, gpus=32, dtype="fp8", max_num_seqs=128, weights=30 * 10**9, routed=25 * 10**9)
    trainers = Trainers(gpus=128, dtype="bf16", recompute=True)
    found = {phase.name: phase for phase in phases(work, active(V3), V3, hardware, trainers, engines)}
    assert list(found) == ["prefill", "decode", "reference", "forward", "backward", "sync"]
    prompts = 32 * 1000 * forward_flops(active(V3), V3, 500)
    assert found["prefill"].seconds == pytest.approx(prompts / 1979e12 / 64)
    read = 5e9 + 25e9 * (1 - (1 - 8 / 256) ** 128) + 128 / 32 * 2500 * 61 * 576 * 2
    assert found["decode"].seconds == pytest.approx(2 * 3000 * read / 3.35e12)  # two waves; reading takes longest
    assert found["forward"].flops == 512 * 4000 * forward_flops(active(V3), V3, 2000)
    assert found["forward"].seconds == pytest.approx(found["forward"].flops / 989e12 / 128)
    assert found["backward"].seconds == pytest.approx(3 * found["forward"].seconds)
    assert found["reference"].seconds == found["forward"].seconds
    assert found["sync"].seconds == pytest.approx(30 / 50)
    assert all(phase.assumption for phase in found.values())
    given = replace(work, samples_here=False, reference=False)
    assert [phase.name for phase in phases(given, 1, V3, hardware, trainers, engines)] == ["forward", "backward"]


def test_published_hours_come_out_of_their_stages() -> None:
    """Table 1 of V3's paper; R1's supplement gives 101 K, 5 K and 41 K, rounded, and 147 K together."""
    cost = Cost(stages=tuple(V3_STAGES), price=2.0)
    assert [stage.hours for stage in cost.stages] == [2_664_000, 119_000, 5_000]
    assert cost.hours == 2_788_000
    assert cost.dollars == 5_576_000
    r1 = Cost(stages=tuple(R1_STAGES), price=2.0)
    assert [round(stage.hours, -3) for stage in r1.stages] == [101_000, 5_000, 41_000]
    assert round(r1.hours, -3) == 147_000
