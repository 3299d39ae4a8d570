"""From a folder to a model, by the kind that the configuration names."""

from __future__ import annotations

from pathlib import Path

import torch

from rlkit.errors import UserError
from rlkit.model.architecture import Architecture
from rlkit.model.base import CausalLM
from rlkit.model.config import CONFIG, PUBLISHED, DeepseekV3Config, read_json
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.experts import ALL, ExpertShare
from rlkit.model.hf_architecture import HfArchitecture
from rlkit.model.scorer import deepseek_class
from rlkit.model.stages import WHOLE, Stage

KINDS = ("deepseek", "hf")
"""What a configuration may call a model: ours, or any causal language model through its class in transformers."""


def kind_of(path: Path) -> str:
    """Returns the kind of the model in a folder: ours for DeepSeek's own model types, else transformers'.

    Raises UserError if there is no config.json, with the folder of the model where a run's folder was given.
    """
    if not (path / CONFIG).is_file() and (path / "model" / CONFIG).is_file():
        raise UserError(f"model.path={path} is the folder of a run; its model is {path / 'model'}")
    return "deepseek" if read_json(path).get("model_type") in [name for name, _ in PUBLISHED.values()] else "hf"


def read_architecture(path: Path, kind: str) -> Architecture:
    """Reads what config.json in `path` says of a model of this `kind`; raises UserError if it cannot be read."""
    return {"deepseek": DeepseekArchitecture, "hf": HfArchitecture}[kind].from_folder(path)


def load_model(path: Path, dtype: torch.dtype, kind: str, share: ExpertShare = ALL, stage: Stage = WHOLE) -> CausalLM:
    """Loads the model in `path` on the CPU, in `dtype`, with the class that its `kind` (one of `KINDS`) stands for.

    Of the routed experts it has those of `share`, of the layers those of `stage`; transformers' classes have all.

    Raises UserError, with file and tensor, for a folder that is missing, incomplete, not finite or of another
    architecture.
    """
    if kind == "deepseek":
        return deepseek_class(DeepseekV3Config.from_folder(path)).from_checkpoint(path, dtype, share, stage)
    from rlkit.model.hf import HfModel  # takes seconds to import

    return HfModel.from_checkpoint(path, dtype)
