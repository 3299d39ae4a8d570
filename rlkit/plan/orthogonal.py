"""How many parameters Muon trains."""

from __future__ import annotations

from rlkit.config import LearningRun
from rlkit.model.architecture import Architecture
from rlkit.model.matrices import matrix_shapes


def orthogonal_parameters(cfg: LearningRun, architecture: Architecture) -> int:
    """Counts the parameters of all matrices that Muon trains, which have one moment less; 0 with AdamW."""
    if cfg.trainer.optimizer != "muon":
        return 0
    return sum(parameter.numel() for parameter in matrix_shapes(architecture.empty_model()))
