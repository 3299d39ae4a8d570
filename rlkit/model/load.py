"""Two kinds of model behind one interface: our DeepSeek-V3, and what transformers makes of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from rlkit.model.base import CausalLM
from rlkit.model.config import DeepseekV3Config
from rlkit.model.deepseek import DeepseekV3
from rlkit.model.files.folder import as_stored, checkpoint_files
from rlkit.model.files.hf_folder import HfArchitecture
from rlkit.model.meta import on_meta

Architecture = DeepseekV3Config | HfArchitecture
"""What is known of a model before it is loaded; both have vocab_size, num_hidden_layers, max_position_embeddings."""


KINDS = ("deepseek", "hf")
"""What a configuration may call a model: ours, or any causal language model through its class in transformers."""


def read_architecture(path: Path, kind: str) -> Architecture:
    """Reads what config.json in `path` says of a model of this `kind`; raises ValueError if it cannot be read."""
    if kind == "hf":
        return HfArchitecture.from_folder(path)
    config = DeepseekV3Config.from_folder(path)
    return as_stored(config, checkpoint_files(path)) if config.num_nextn_predict_layers else config


def load_model(path: Path, dtype: torch.dtype, kind: str) -> CausalLM:
    """Loads the model in `path` on the CPU, in `dtype`, with the class that its `kind` (one of `KINDS`) stands for.

    Raises ValueError, with file and tensor, for a folder that is missing, incomplete, not finite or of another
    architecture.
    """
    if kind == "deepseek":
        return DeepseekV3.from_checkpoint(path, dtype)
    from rlkit.model.hf import HfModel  # takes seconds to import

    return HfModel.from_checkpoint(path, dtype)


def empty_model(architecture: Architecture) -> CausalLM:
    """The model on the meta device: shapes without memory."""
    if isinstance(architecture, DeepseekV3Config):
        with on_meta():
            return DeepseekV3(architecture)
    from transformers import AutoModelForCausalLM

    from rlkit.model.hf import HfModel

    with on_meta():
        return HfModel(AutoModelForCausalLM.from_config(architecture.config), architecture)


def write_model(architecture: Architecture, weights: Iterable[tuple[str, Tensor]], path: Path, dtype: str) -> None:
    """Write published weights as a checkpoint that transformers and vLLM load; it appears whole or not at all.

    `dtype` is "bf16" or "fp32". ValueError for weights that are not those of the architecture.
    """
    if isinstance(architecture, HfArchitecture):
        architecture.write(path, weights, dtype)
        return
    model = DeepseekV3(architecture)
    model.load_weights(weights)
    model.save_checkpoint(path, dtype=dtype)
