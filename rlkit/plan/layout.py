"""How a trainer's ranks share a model out: pipeline stages, parts of the experts, and ZeRO over what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkit.checks import one_of, whole
from rlkit.errors import UserError
from rlkit.model.config import DeepseekV3Config

ZERO_STAGES = (1, 2, 3)
OFFLOADS = ("none", "optimizer", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Ranks are numbered stage by stage; in a stage E consecutive ranks hold all experts once, then again."""

    ranks: int
    expert_parallel: int = 1
    """E: over how many ranks the routed experts of a layer are dealt."""
    pipeline_stages: int = 1
    """P: over how many ranks the layers are dealt."""
    zero_stage: int = 1
    """What is dealt over the replicas: 1 the optimiser, 2 gradients as well, 3 weights as well."""
    offload: str = "none"
    """What lies in main memory: "none", "optimizer" with the gradients that it takes, or "all", the weights too."""
    recompute: bool = True
    """Keeps the inputs of blocks alone, and runs each block again in the backward pass."""

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense layers: R / P."""
        return self.ranks // self.pipeline_stages

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same experts: R / (P E)."""
        return self.replicas // self.expert_parallel

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Returns the stage of a rank, its replica of the experts, and its part of them."""
        stage, place = divmod(rank, self.replicas)
        return (stage, *divmod(place, self.expert_parallel))

    def __str__(self) -> str:
        """Names what is divided, as papers do."""
        parts = [f"EP{self.expert_parallel}", f"PP{self.pipeline_stages}", f"ZeRO-{self.zero_stage}"]
        return " ".join(parts if self.offload == "none" else [*parts, f"offload={self.offload}"])

    def check(self, config: DeepseekV3Config | None) -> None:
        """Raises UserError, with key, value and fix, for a layout that does not divide the ranks or this model.

        `config` is None for a model of transformers, which is not cut.
        """
        for key, value in (("gpus", self.ranks), ("expert_parallel", self.expert_parallel)):
            whole(key, value, least=1)
        whole("pipeline_stages", self.pipeline_stages, least=1)
        if self.zero_stage not in ZERO_STAGES:
            raise UserError(f"zero_stage={self.zero_stage} is unknown; use 1, 2 or 3")
        one_of("offload", self.offload, OFFLOADS)
        if self.offload == "all" and self.zero_stage != 3:
            raise UserError(
                f"offload=all with zero_stage={self.zero_stage}: only weights that ZeRO has dealt can leave the "
                "device; use zero_stage=3, or offload=optimizer"
            )
        if self.offload != "none" and self.pipeline_stages > 1:
            raise UserError(
                f"offload={self.offload} with pipeline_stages={self.pipeline_stages}: the pipeline keeps gradients "
                "on the device; use pipeline_stages=1, or offload=none"
            )
        self._check_pipeline(config)
        self._check_experts(config)

    def _check_pipeline(self, config: DeepseekV3Config | None) -> None:
        stages = self.pipeline_stages
        if self.ranks % stages:
            raise UserError(
                f"pipeline_stages={stages} does not divide gpus={self.ranks}; use {_near(self.ranks, stages)}"
            )
        if stages == 1:
            return
        if config is None:
            raise UserError(f"pipeline_stages={stages}: a model of transformers is not cut into stages; use 1")
        layers = config.num_hidden_layers
        if 2 * stages > layers:
            raise UserError(
                f"pipeline_stages={stages}: DualPipeV gives every stage two pieces, and the model has {layers} layers "
                f"for the {2 * stages}; use at most {layers // 2}"
            )
        if self.zero_stage > 1:
            raise UserError(
                f"zero_stage={self.zero_stage} with pipeline_stages={stages}: the pipeline adds up whole gradients of "
                "many micro-batches before they are reduced; use zero_stage=1"
            )

    def _check_experts(self, config: DeepseekV3Config | None) -> None:
        parts = self.expert_parallel
        if parts == 1:
            return
        if config is None or not (config.has_experts or config.num_nextn_predict_layers):
            raise UserError(f"expert_parallel={parts}: the model has no routed experts of our own class; use 1")
        experts = config.n_routed_experts
        if experts % parts:
            raise UserError(
                f"expert_parallel={parts} does not divide n_routed_experts={experts}; use {_near(experts, parts)}"
            )
        if self.replicas % parts:
            where = f"gpus={self.ranks}"
            where += f" / pipeline_stages={self.pipeline_stages}" if self.pipeline_stages > 1 else ""
            both = [value for value in divisors(self.replicas) if experts % value == 0]
            raise UserError(f"expert_parallel={parts} does not divide {where}; use {_nearest(both, parts)}")


def divisors(number: int) -> list[int]:
    """Returns all divisors, smallest first."""
    return [value for value in range(1, number + 1) if number % value == 0]


def _near(number: int, wanted: int) -> str:
    return _nearest(divisors(number), wanted)


def _nearest(values: Sequence[int], wanted: int) -> str:
    """The values around the one that was wanted, in words."""
    below, above = [v for v in values if v < wanted], [v for v in values if v > wanted]
    return " or ".join(str(value) for value in [*below[-1:], *above[:1]])
