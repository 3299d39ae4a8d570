"""How many parameters LoRA trains."""

from __future__ import annotations

from rlkit.config import LearningRun
from rlkit.model.architecture import Architecture
from rlkit.model.lora import choose_targets, count_parameters


def adapter_parameters(cfg: LearningRun, architecture: Architecture) -> int:
    """Counts the parameters of all adapters, 0 without LoRA; raises UserError for a target that is not there."""
    if cfg.trainer.lora is None:
        return 0
    model = architecture.empty_model()
    return count_parameters(model, cfg.trainer.lora.rank, choose_targets(model, cfg.trainer.lora.targets))
