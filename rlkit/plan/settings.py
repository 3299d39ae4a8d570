"""The keys of `rlkit plan` that are not a recipe's: the hardware, the layout, and what is to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from rlkit.checks import number, one_of, whole
from rlkit.errors import UserError
from rlkit.overrides import read_override, read_value
from rlkit.plan.cost import PRICE
from rlkit.plan.deployments import find_deployment
from rlkit.plan.layout import OFFLOADS, ZERO_STAGES

DTYPES = ("fp32", "bf16", "fp8", "fp8_weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """None takes the value from the recipe's configuration, or works it out."""

    hardware: str = "this"
    deployment: str = ""
    """A published layout: its values for what is not given."""
    gpus: int | None = None
    """Of the trainer; `trainer.num_ranks` of the configuration."""
    nodes: int | None = None
    """Instead of `gpus`."""
    expert_parallel: int | None = None
    pipeline_stages: int | None = None
    zero_stage: int | None = None
    offload: str | None = None
    recompute: bool | None = None
    trainer_dtype: str | None = None
    engine_gpus: int | None = None
    """Of one engine; `engine.tensor_parallel`, where EP does not need more."""
    tensor_parallel: int | None = None
    engine_experts: bool = False
    """Deals whole experts over the devices of an engine."""
    redundant_experts: int = 0
    shared_is_routed: bool = False
    engine_dtype: str | None = None
    prompt_tokens: int | None = None
    """Of a prompt on average; what `engine.max_model_len` leaves beside a completion."""
    completion_tokens: int | None = None
    """Of a completion on average; `max_new_tokens`."""
    price: float = PRICE
    """Dollars for an hour of one GPU."""
    cost: str = ""
    """A published run whose GPU-hours are added up."""
    rehearse: bool = False
    """Deals every tensor of the published checkpoint, and compares the union with its index."""

    def __post_init__(self) -> None:
        """Refuses numbers that are none, and choices that there are not."""
        for name in ("gpus", "nodes", "expert_parallel", "pipeline_stages", "engine_gpus", "tensor_parallel"):
            if (value := getattr(self, name)) is not None:
                whole(name, value, least=1)
        for name in ("prompt_tokens", "completion_tokens"):
            if (value := getattr(self, name)) is not None:
                whole(name, value)
        whole("redundant_experts", self.redundant_experts)
        number("price", self.price, least=0, fix="dollars for an hour of one GPU; V3's paper has 2")
        for name in ("trainer_dtype", "engine_dtype"):
            if (value := getattr(self, name)) is not None:
                one_of(name, value, DTYPES)
        if self.offload is not None:
            one_of("offload", self.offload, OFFLOADS)
        if self.zero_stage is not None and self.zero_stage not in ZERO_STAGES:
            raise UserError(f"zero_stage={self.zero_stage} is unknown; use 1, 2 or 3")
        if self.gpus is not None and self.nodes is not None:
            raise UserError(f"gpus={self.gpus} and nodes={self.nodes} both say how many GPUs; give one of them")


KINDS = {"bool": bool, "int": int, "float": float, "str": str}
TYPES: dict[str, type] = {field.name: KINDS[str(field.type).removesuffix(" | None")] for field in fields(PlanSettings)}
"""What each key holds."""


def read_settings(words: Sequence[str]) -> tuple[PlanSettings, list[str]]:
    """Splits `key=value` words into settings of the plan and overrides of the recipe's configuration.

    Raises UserError for a value of the wrong type.
    """
    given: dict[str, object] = {}
    rest = []
    for word in words:
        override = read_override(word)
        if override.key in TYPES and not override.remove:
            given[override.key] = _typed(override.key, override.text)
        else:
            rest.append(word)
    preset = find_deployment(str(given.get("deployment", "")))
    if "nodes" in given:  # the two say the same, so the one that is given counts
        preset = {key: value for key, value in preset.items() if key != "gpus"}
    return replace(PlanSettings(), **{**preset, **given}), rest


def _typed(key: str, text: str) -> object:
    kind = TYPES[key]
    if kind is str:
        return text
    value = read_value(key, text)
    fine = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not fine:
        what = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{key}={text} has the wrong type; give {what}")
    return value
