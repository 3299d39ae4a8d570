"""A checkpoint folder of any causal language model that transformers knows: what it says and holds, how it is written.

Names and shapes are the published ones. Where transformers keeps weights differently in memory (it stacks the experts
of a layer), its own table of conversions is read backwards, as `save_pretrained` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlkit.errors import UserError
from rlkit.model.config import CONFIG, read_json
from rlkit.model.files.folder import Checkpoint, write_checkpoint
from rlkit.model.files.names import Place
from rlkit.model.files.shards import read_headers
from rlkit.model.meta import on_meta

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# transformers imports DeepSpeed where it is installed, and DeepSpeed says what it finds unless it is told.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

BUFFER = r"rotary_emb\.inv_freq$"
"""A name that older files hold although the tensor is computed."""
SCALES = {
    "final_logit_softcapping": (None, 0), "logits_soft_cap": (None, 0), "logit_scale": (None, 1),
    "logits_scaling": (None, 1), "lm_head_multiplier": (None, 1),
}  # fmt: skip
"""What a config.json may do to logits behind the head, and the values that do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HfFolder:
    """What config.json says of a model, transformers' defaults filled in, and the weights that follow from it."""

    folder: Path
    published: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Name and shape of every weight of a checkpoint; a head that is tied to the embedding is not among them."""
    tied: frozenset[str] = field(repr=False)
    """Names that a checkpoint may hold although they repeat another weight."""
    ignored: tuple[str, ...] = field(repr=False)
    """Regular expressions of names that transformers leaves out when it loads."""
    raw: Mapping[str, Any] = field(repr=False)
    """config.json as it is; an export repeats it."""
    config: Any = field(repr=False)
    """The same as transformers' object."""

    @classmethod
    def read(cls, folder: Path) -> HfFolder:
        """Reads config.json; raises UserError if it is missing or of no model that can be trained here."""
        from transformers import AutoModelForCausalLM  # takes seconds to import, and our own models do without
        from transformers.core_model_loading import revert_weight_conversion

        raw = read_json(folder)
        config = _read(folder, raw)
        try:
            with on_meta():
                model = AutoModelForCausalLM.from_config(config)
        except Exception as error:  # sizes that do not go together fail in as many ways as there are models
            kind = f"{folder / CONFIG}: model_type={config.model_type!r}"
            raise UserError(f"{kind} cannot be made by transformers ({error}); copy the file again") from error
        if (problem := head_problem(model) or layers_problem(model)) is not None:
            raise UserError(f"{folder / CONFIG}: model_type={config.model_type!r} {problem}")
        # The weights in memory, taken back through transformers' own conversions, are those of a checkpoint. On the
        # meta device this costs no memory, so names and shapes of any model are known before a file is opened.
        tied = frozenset(model.all_tied_weights_keys)
        own = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        return cls(
            folder=folder,
            published={name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, own).items()},
            tied=tied,
            ignored=tuple(model._keys_to_ignore_on_load_unexpected or ()),
            raw=raw,
            config=config,
        )

    @property
    def text_config(self) -> Any:
        """Returns the part of the config about language, which is all of it unless the model sees images too."""
        return self.config.get_text_config(decoder=True)

    @property
    def table(self) -> dict[str, Place]:
        """Lists every published weight as living under its own name: conversions are transformers' business."""
        return {name: Place(name=name, shape=shape) for name, shape in self.published.items()}

    def check(self) -> None:
        """Compares the headers of the weight files with the model; raises UserError naming file, tensor and fix."""
        weights = {
            name: stored
            for name, stored in read_headers(self.folder).items()
            if name in self.published
            or (name not in self.tied and not any(re.search(pattern, name) for pattern in (*self.ignored, BUFFER)))
        }
        Checkpoint(folder=self.folder, raw=self.raw, weights=weights, scales={}, carried={}).check(self.table)

    def write(self, path: Path, weights: Iterable[tuple[str, Tensor]], dtype: str) -> None:
        """Writes these published weights with this config.json; the folder appears whole or not at all.

        `dtype` is "bf16" or "fp32". Raises ValueError for a weight that is missing, unknown or of another shape.
        """
        own = ((name, tensor) for name, tensor in weights if name not in self.tied)
        write_checkpoint(path, own, self.table, self.raw, dtype, base=self.folder)


def _read(folder: Path, raw: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = f"{folder / CONFIG}: model_type={raw.get('model_type')!r}"
    if raw.get("quantization_config"):
        fix = "a run does not start from quantised weights: save the model in bf16 or fp32 first"
        raise UserError(f"{kind}, quantization_config={raw['quantization_config']!r}; {fix}")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{kind} is not known to transformers, or the file is damaged: {error}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"{kind} is no causal language model of transformers; give the folder of one")
    return config


def head_problem(model: PreTrainedModel) -> str | None:
    """Says why the logits of a model are not its last hidden states times one matrix; None if they may be."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return "has no linear head; only models whose logits are hidden states times a matrix can be trained"
    if head.bias is not None:
        return "has a head with a bias; only models whose logits are hidden states times a matrix can be trained"
    text = model.config.get_text_config(decoder=True)
    for key, harmless in SCALES.items():
        if (value := getattr(text, key, None)) not in harmless:
            return f"has {key}={value}; only models whose logits are hidden states times a matrix can be trained"
    return None


def layers_problem(model: PreTrainedModel) -> str | None:
    """Says why the layers of a model cannot run on packs and decode with keys and values; None if they can."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if model.base_model is model:
        return "has no backbone apart from its head, which training on hidden states needs"
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        return "has layers that are not attention with keys and values (state space, linear attention)"
    return None
