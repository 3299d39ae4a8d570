"""V3's published deployments, and the bytes of an engine against tensors that are there."""

from __future__ import annotations

import pytest

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.model import DeepseekV3
from rlkit.model.decode import prefill
from rlkit.plan.engine import EngineLayout, engine_bytes, routed_bytes, weight_bytes
from rlkit.plan.settings import read_settings
from tests.model.tiny import BASE

V3 = load_config("grpo", GrpoRun, ["model=deepseek_v3_671b"]).model.architecture
assert V3 is not None
EXPERT_LAYERS, EXPERT = 58, 3 * 7168 * 2048
SCALES = 4 / 128**2
"""Bytes of fp32 scales for each code."""


def layout_of(deployment: str) -> EngineLayout:
    settings, _ = read_settings([f"deployment={deployment}"])
    assert settings.engine_gpus is not None and settings.tensor_parallel is not None
    return EngineLayout(
        gpus=settings.engine_gpus,
        tensor_parallel=settings.tensor_parallel,
        expert_parallel=settings.engine_experts,
        redundant_experts=settings.redundant_experts,
        shared_is_routed=settings.shared_is_routed,
    )


@pytest.mark.parametrize(
    ("deployment", "gpus", "data_parallel", "experts"), [("v3_prefill", 32, 8, 9), ("v3_decode", 320, 80, 1)]
)
def test_published_deployments(deployment: str, gpus: int, data_parallel: int, experts: int) -> None:
    """Sections 3.4.1 and 3.4.2 of the paper: TP4 with DP8, 8 + 1 experts a GPU; TP4 with DP80, one expert a GPU."""
    layout = layout_of(deployment)
    assert V3 is not None
    layout.check(V3)
    assert (layout.gpus, layout.data_parallel) == (gpus, data_parallel)
    assert layout.experts_per_gpu(256) == experts
    assert routed_bytes(V3, layout, "fp8") == round(experts * EXPERT_LAYERS * EXPERT * (1 + SCALES))


def test_weights_of_one_device_are_the_model() -> None:
    assert V3 is not None
    alone = EngineLayout(gpus=1)
    total = 671_026_404_352
    biases = EXPERT_LAYERS * 256
    assert weight_bytes(V3, alone, "bf16") == 2 * total + 4 * biases
    # Without EP everything but latent projections, norms and routers is divided by TP.
    whole = 61 * (7168 * (1536 + 576) + 2 * 7168 + 1536 + 512) + EXPERT_LAYERS * 256 * 7168 + 7168
    divided = (2 * (total - whole)) / 8
    assert weight_bytes(V3, EngineLayout(gpus=8, tensor_parallel=8), "bf16") == round(2 * whole + 4 * biases + divided)


def test_the_cache_is_that_of_a_decoder() -> None:
    model = DeepseekV3(BASE)
    _, cache = prefill(model.model, model.lm_head, [[1, 2, 3, 4]] * 6)
    found = engine_bytes(BASE, EngineLayout(gpus=1), kind="vllm", dtype="fp32", sequences=6, length=4)
    assert found.cache == sum(layer.nbytes for layer in cache.layers)
    assert found.logits == 6 * BASE.vocab_size * 4


def test_latents_are_not_divided_by_tensor_parallelism_but_sequences_are_by_data_parallelism() -> None:
    values = {"kind": "vllm", "dtype": "fp8", "sequences": 64, "length": 100}
    assert V3 is not None
    one, wide = (EngineLayout(gpus=8, tensor_parallel=ways, expert_parallel=True) for ways in (1, 8))
    assert engine_bytes(V3, wide, **values).cache == 64 * 100 * 576 * 2 * 61
    assert engine_bytes(V3, one, **values).cache == 8 * 100 * 576 * 2 * 61


def test_the_torch_engine_copies_what_it_reads() -> None:
    found = engine_bytes(BASE, EngineLayout(gpus=1), kind="torch", dtype="fp32", sequences=1, length=2)
    assert found.peak == 2 * found.weights
