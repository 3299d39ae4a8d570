"""Published deployments as presets: settings of a plan under a name. A key that is given wins over its preset."""

from __future__ import annotations

from collections.abc import Mapping

from rlkit.checks import suggestion
from rlkit.errors import UserError
from rlkit.plan.cost import R1_STAGES, V3_STAGES, Stage

Settings = Mapping[str, object]

DEPLOYMENTS: Mapping[str, Settings] = {
    # Section 3.4.1 of V3's paper: 4 nodes; TP4 x DP8 for attention, EP32, 8 + 1 experts on each GPU.
    "v3_prefill": {
        "hardware": "h800",
        "engine_gpus": 32,
        "tensor_parallel": 4,
        "engine_experts": True,
        "redundant_experts": 32,
        "engine_dtype": "fp8",
    },
    # Section 3.4.2: 40 nodes; TP4 x DP80, EP320, one expert on each GPU, 64 GPUs for redundant and shared experts.
    "v3_decode": {
        "hardware": "h800",
        "engine_gpus": 320,
        "tensor_parallel": 4,
        "engine_experts": True,
        "redundant_experts": 64,
        "shared_is_routed": True,
        "engine_dtype": "fp8",
    },
    # Sections 3.1 and 3.2: 2,048 H800, PP16, EP64 over 8 nodes, ZeRO-1.
    "v3_training": {
        "hardware": "h800",
        "gpus": 2048,
        "expert_parallel": 64,
        "pipeline_stages": 16,
        "zero_stage": 1,
        "trainer_dtype": "fp8",
    },
}
STAGES: Mapping[str, tuple[Stage, ...]] = {"v3": tuple(V3_STAGES), "r1": tuple(R1_STAGES)}
"""Published runs whose cost can be reckoned up."""


def find_deployment(name: str) -> Settings:
    """Returns the settings of a preset, none for ""; raises UserError for an unknown name."""
    if not name:
        return {}
    if name not in DEPLOYMENTS:
        known = ", ".join(DEPLOYMENTS)
        raise UserError(f"deployment={name!r} is unknown; use one of {known}{suggestion(name, list(DEPLOYMENTS))}")
    return DEPLOYMENTS[name]


def find_stages(name: str) -> tuple[Stage, ...]:
    """Returns the stages of a published run; raises UserError for an unknown name."""
    if name not in STAGES:
        known = ", ".join(STAGES)
        raise UserError(f"cost={name!r} is unknown; use one of {known}{suggestion(name, list(STAGES))}")
    return STAGES[name]
