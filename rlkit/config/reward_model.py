"""The configuration of `recipes.reward_model`."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.algo.schedule import Schedule
from rlkit.checks import one_of, whole
from rlkit.config.runs import LearningRun
from rlkit.errors import UserError
from rlkit.quant.fp8 import FLOAT8


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """What a reward model learns from: which of two completions is preferred, or how good one is."""

    kind: str
    """"pairwise" (Bradley-Terry: a chosen and a rejected completion) or "pointwise" (a completion and a label)."""
    steps: int
    batch_size: int
    """How many pairs, or labelled completions, an optimiser step learns from."""
    chosen_column: str
    rejected_column: str
    """Columns of completions, chain of thought included: text, or chat messages whose last one is the completion."""
    completion_column: str
    label_column: str
    """For pointwise: a completion, and how good it is: true or false, or a number from 0 to 1."""
    max_length: int
    """The most tokens of a prompt with a completion."""
    schedule: Schedule

    def __post_init__(self) -> None:
        """Refuses unknown kinds and empty stages."""
        one_of("reward_model.kind", self.kind, ("pairwise", "pointwise"))
        whole("reward_model.steps", self.steps)
        whole("reward_model.batch_size", self.batch_size, least=1)
        whole("reward_model.max_length", self.max_length, least=2)


@dataclass(frozen=True, kw_only=True)
class RewardModelRun(LearningRun):
    """`recipes.reward_model`."""

    reward_model: RewardModelConfig

    def __post_init__(self) -> None:
        """Checks what all recipes that learn need, then what a head that scores can do."""
        super().__post_init__()
        if self.model.kind != "deepseek":
            raise UserError(
                f"model.kind={self.model.kind!r}: recipe reward_model puts a head on our own class alone; use "
                "model=deepseek_v3_tiny or another of ours, with model.path"
            )
        if not self.model.path:
            raise UserError(
                "model.path='': a reward model starts from the checkpoint of an SFT run; set model.path=FOLDER, as "
                "outputs/sft/model"
            )
        for key, value, only, why in (
            ("pipeline", self.trainer.pipeline, 1, "the head that scores is not spread over stages"),
            ("dtype", self.trainer.dtype, "bf16", "a head that scores was not tried over FP8"),
        ):
            if value != only and (key == "pipeline" or value in FLOAT8):
                raise UserError(f"trainer.{key}={value} with recipe reward_model: {why}; set trainer.{key}={only}")
        if self.reward_model.batch_size % self.trainer.num_shares:
            raise UserError(
                f"reward_model.batch_size={self.reward_model.batch_size} cannot be dealt evenly to "
                f"{self.trainer.dealt_to}; use a multiple of it"
            )
