"""The configuration of `recipes.on_policy_distill`: a student that learns from its own rollouts, and its teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rlkit.algo.packing import AGGREGATES
from rlkit.algo.schedule import Schedule
from rlkit.checks import one_of, whole
from rlkit.config.engine import EngineConfig
from rlkit.config.groups import ModelConfig
from rlkit.config.placement import Demand
from rlkit.config.runs import EngineRun, TrainingRun
from rlkit.config.stages import SamplingConfig
from rlkit.errors import UserError, named_by
from rlkit.model.load import kind_of
from rlkit.quant.fp8 import FLOAT8


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """On-policy distillation: how much the student samples, and how it learns from what the teacher says of it."""

    steps: int
    prompts_per_step: int
    samples: int
    """How many rollouts each prompt gets."""
    aggregate: str
    sampling: SamplingConfig
    schedule: Schedule

    def __post_init__(self) -> None:
        """Refuses empty steps, and samples whose distribution is not the one that the teacher is asked about."""
        whole("on_policy.steps", self.steps)
        whole("on_policy.prompts_per_step", self.prompts_per_step, least=1)
        whole("on_policy.samples", self.samples, least=1)
        one_of("on_policy.aggregate", self.aggregate, AGGREGATES)
        for key in ("temperature", "top_p"):
            if (value := getattr(self.sampling, key)) != 1:
                raise UserError(
                    f"on_policy.sampling.{key}={value:g}: the teacher says log-probs at temperature 1 over the whole "
                    "vocabulary, and the student's have to be of the same kind; set it to 1"
                )


@dataclass(frozen=True, kw_only=True)
class LogprobTeacherConfig:
    """The frozen model that is asked for log-probs, on an engine of its own; its other settings are the student's."""

    path: str
    """The folder of a checkpoint whose tokenizer is the student's."""
    dtype: str
    tensor_parallel: int
    memory: float
    """As engine.dtype, engine.tensor_parallel and engine.memory."""

    def __post_init__(self) -> None:
        """Refuses a teacher without a folder."""
        if not self.path:
            raise UserError("teacher.path is empty, and a teacher is a trained model; set teacher.path to its folder")


@dataclass(frozen=True, kw_only=True)
class TeacherRun(EngineRun):
    """The teacher's engine, which starts like that of any run that only samples."""

    engine_name: ClassVar[str] = "teacher"
    student: Demand
    """All processes of the run that it is part of."""

    @property
    def demand(self) -> Demand:
        """Returns the processes of the whole run, which share the machine."""
        return self.student


@dataclass(frozen=True, kw_only=True)
class OnPolicyDistillRun(TrainingRun):
    """`recipes.on_policy_distill`."""

    on_policy: OnPolicyConfig
    teacher: LogprobTeacherConfig

    def __post_init__(self) -> None:
        """Checks what all recipes need, then that rollouts can be dealt and fit, then the engine of the teacher."""
        super().__post_init__()
        cfg, rollouts = self.on_policy, self.on_policy.prompts_per_step * self.on_policy.samples
        if cfg.prompts_per_step % self.engine.num_engines:
            raise UserError(
                f"on_policy.prompts_per_step={cfg.prompts_per_step} cannot be dealt evenly to engine.num_engines="
                f"{self.engine.num_engines}; use a multiple of it"
            )
        if rollouts % self.trainer.num_shares:
            raise UserError(
                f"on_policy.prompts_per_step x on_policy.samples = {rollouts} rollouts cannot be dealt evenly to "
                f"{self.trainer.dealt_to}; change one of them"
            )
        self._check_room("on_policy", cfg.sampling)
        for key, dtype in (("trainer.dtype", self.trainer.dtype), ("teacher.dtype", self.teacher.dtype)):
            if dtype in ("fp8", *FLOAT8):
                raise UserError(
                    f"{key}={dtype} with recipe on_policy_distill: log-ratios of two models in FP8 were not tried; set "
                    f"{key}=bf16"
                )
        try:
            _ = self._teacher_engine
        except UserError as error:
            raise UserError(
                f"the teacher, whose engine has the values of teacher.* for those of engine: {error}"
            ) from error

    @property
    def teacher_run(self) -> TeacherRun:
        """Returns the teacher's engine as a run of its own, in a folder of its own.

        Raises UserError where teacher.path holds no model.
        """
        own = self.teacher
        with named_by("teacher.path"):
            kind = kind_of(Path(own.path))
        return TeacherRun(
            recipe=self.recipe,
            output_dir=self.output_dir / "teacher",
            seed=self.seed,
            dry_run=self.dry_run,
            model=ModelConfig(kind=kind, path=own.path, architecture=None),
            cluster=self.cluster,
            engine=self._teacher_engine,
            student=self.demand,
        )

    @property
    def _teacher_engine(self) -> EngineConfig:
        own = self.teacher
        return replace(
            self.engine,
            num_engines=1,
            speculative_tokens=0,
            dtype=own.dtype,
            tensor_parallel=own.tensor_parallel,
            memory=own.memory,
        )

    @property
    def demand(self) -> Demand:
        """Returns how many processes compute, each of which wants a CPU and a GPU."""
        return replace(super().demand, teacher=self.teacher.tensor_parallel)

    @property
    def longest_completion(self) -> int:
        """Returns the most tokens that are sampled after a prompt, and one that vLLM adds where it is asked of them."""
        return max(super().longest_completion, self.on_policy.sampling.max_new_tokens + 1)

    def amounts(self, num_prompts: int | None, num_demonstrations: int | None) -> list[tuple[str, str]]:
        """Says what is sampled and learned from."""
        cfg, rollouts = self.on_policy, self.on_policy.prompts_per_step * self.on_policy.samples
        steps = f"{cfg.steps} steps x {cfg.prompts_per_step} prompts x {cfg.samples} rollouts = {rollouts} a step"
        longest = cfg.sampling.max_new_tokens
        return [
            *super().amounts(num_prompts, num_demonstrations),
            ("on-policy distillation", steps),
            ("tokens per step", f"at most {rollouts * longest:,} sampled, in rollouts of up to {longest}"),
            ("teacher", self.teacher.path),
        ]
