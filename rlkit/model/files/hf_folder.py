"""A checkpoint folder of any causal language model that transformers knows: what it says, holds, and how it is written.

Names and shapes are the published ones. Where transformers keeps weights differently in memory (it stacks the experts
of a layer), its own table of conversions is read backwards, as `save_pretrained` does.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlkit.model.config import CONFIG, GENERATION_CONFIG, end_tokens, read_json
from rlkit.model.files.folder import Checkpoint, encode, write_config
from rlkit.model.files.names import Place
from rlkit.model.files.shards import MAX_SHARD_BYTES, ShardWriter, read_headers, replaced_folder
from rlkit.model.meta import on_meta

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# transformers imports DeepSpeed where it is installed, and DeepSpeed says what it finds unless it is told.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")
"""What config.json may call the number of routed experts."""
BUFFER = r"rotary_emb\.inv_freq$"
"""What older files hold although it is computed."""
STRETCHED = ("dynamic", "longrope")
"""Kinds of RoPE whose angles depend on the longest sample of a batch beyond the original context."""
SCALES = {
    "final_logit_softcapping": (None, 0), "logits_soft_cap": (None, 0), "logit_scale": (None, 1),
    "logits_scaling": (None, 1), "lm_head_multiplier": (None, 1),
}  # fmt: skip
"""What a config.json may do to logits behind the head, and the values that do nothing."""
NO_LIMIT = 2**31
"""Positions of a model whose config.json sets no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HfArchitecture:
    """What config.json says of a model, transformers' defaults filled in, and the weights that follow from it."""

    folder: Path
    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    end_tokens: frozenset[int]
    """Ids that end a completion; empty if config.json names none."""
    published: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Name and shape of every weight of a checkpoint; a head that is tied to the embedding is not among them."""
    tied: frozenset[str] = field(repr=False)
    """Names that a checkpoint may hold although they repeat another weight."""
    ignored: tuple[str, ...] = field(repr=False)
    """Regular expressions of names that transformers leaves out when it loads."""
    num_parameters: int
    raw: Mapping[str, Any] = field(repr=False)
    """config.json as it is; an export repeats it."""
    config: Any = field(repr=False)
    """The same as transformers' object."""

    @classmethod
    def from_folder(cls, folder: Path) -> HfArchitecture:
        """Read config.json; ValueError if it is missing or of no model that can be trained here, with the reason."""
        from transformers import AutoModelForCausalLM  # takes seconds to import, and our own models do without
        from transformers.core_model_loading import revert_weight_conversion

        raw = read_json(folder)
        config = _read(folder, raw)
        with on_meta():
            model = AutoModelForCausalLM.from_config(config)
        if (problem := head_problem(model) or layers_problem(model)) is not None:
            raise ValueError(f"{folder / CONFIG}: model_type={config.model_type!r} {problem}")
        text = config.get_text_config(decoder=True)
        tied = frozenset(model.all_tied_weights_keys)
        own = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        return cls(
            folder=folder,
            vocab_size=text.vocab_size,
            num_hidden_layers=text.num_hidden_layers,
            max_position_embeddings=getattr(text, "max_position_embeddings", None) or NO_LIMIT,
            end_tokens=end_tokens(folder),
            published={name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, own).items()},
            tied=tied,
            ignored=tuple(model._keys_to_ignore_on_load_unexpected or ()),
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            raw=raw,
            config=config,
        )

    def check_files(self) -> None:
        """Compare the headers of the weight files with the model; ValueError naming file, tensor and fix."""
        weights = {
            name: stored
            for name, stored in read_headers(self.folder).items()
            if name in self.published
            or (name not in self.tied and not any(re.search(pattern, name) for pattern in (*self.ignored, BUFFER)))
        }
        table = {name: Place(name=name, shape=shape) for name, shape in self.published.items()}
        Checkpoint(folder=self.folder, raw=self.raw, weights=weights, scales={}, carried={}).check(table)

    def active_parameters(self) -> int:
        """Parameters that one token passes through: its experts, its own row of the embedding, all else."""
        text = self.config.get_text_config(decoder=True)
        routed = sum(prod(shape) for name, shape in self.published.items() if ".experts." in name)
        experts = next((getattr(text, key) for key in EXPERTS if getattr(text, key, None)), 1)
        idle = routed * (1 - getattr(text, "num_experts_per_tok", experts) / experts) if routed else 0
        table = 0 if self.tied else (self.vocab_size - 1) * text.hidden_size
        return round(self.num_parameters - idle) - table

    def cache_numbers(self) -> int:
        """What decoding keeps of each token in each layer: keys and values of all heads, or DeepSeek's latent."""
        text = self.config.get_text_config(decoder=True)
        if getattr(text, "kv_lora_rank", None):
            return text.kv_lora_rank + text.qk_rope_head_dim
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        return 2 * (getattr(text, "num_key_value_heads", None) or heads) * head_dim

    def exact_positions(self) -> int:
        """Tokens up to which a sample's angles are its own: the original context where RoPE then looks at the batch."""
        text = self.config.get_text_config(decoder=True)
        rope = getattr(text, "rope_parameters", None) or {}
        if rope.get("rope_type") not in STRETCHED:
            return self.max_position_embeddings
        original = getattr(text, "original_max_position_embeddings", None)
        return int(rope.get("original_max_position_embeddings") or original or self.max_position_embeddings)

    def write(self, path: Path, weights: Iterable[tuple[str, Tensor]], dtype: str) -> None:
        """Write these published weights with this config.json; the folder appears whole or not at all.

        `dtype` is "bf16" or "fp32". ValueError for a weight that is missing, unknown or of another shape.
        """
        with replaced_folder(path) as folder:
            writer = ShardWriter(folder, MAX_SHARD_BYTES)
            for name, tensor in checked(weights, self.published, self.tied):
                writer.add(encode(name, tensor, None, dtype, None))
            writer.finish()
            write_config(folder, self.raw, dtype)
            if (self.folder / GENERATION_CONFIG).is_file():
                shutil.copyfile(self.folder / GENERATION_CONFIG, folder / GENERATION_CONFIG)


def _read(folder: Path, raw: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = f"{folder / CONFIG}: model_type={raw.get('model_type')!r}"
    if raw.get("quantization_config"):
        fix = "a run does not start from quantised weights: save the model in bf16 or fp32 first"
        raise ValueError(f"{kind}, quantization_config={raw['quantization_config']!r}; {fix}")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{kind} is not known to transformers, or the file is damaged: {error}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"{kind} is no causal language model of transformers; give the folder of one")
    return config


def head_problem(model: PreTrainedModel) -> str | None:
    """Why the logits of a model are not its last hidden states times one matrix; None if nothing speaks against it."""
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
    """Why the layers of a model cannot be run on packs and decoded with keys and values; None if they can."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if model.base_model is model:
        return "has no backbone apart from its head, which training on hidden states needs"
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        return "has layers that are not attention with keys and values (state space, linear attention)"
    return None


def checked(
    weights: Iterable[tuple[str, Tensor]], expected: Mapping[str, tuple[int, ...]], tied: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The same weights without those that repeat another.

    ValueError for one that is unknown, doubled or of another shape, and, at the end, for one that is missing.
    """
    seen: set[str] = set()
    for name, tensor in weights:
        if name in tied:
            continue
        if name not in expected:
            raise ValueError(f"{name}: this model has no such weight; check config.json against the checkpoint")
        if name in seen:
            raise ValueError(f"{name}: given twice; remove one of the copies")
        if tuple(tensor.shape) != expected[name]:
            shapes = f"shape {tuple(tensor.shape)}, but config.json makes it {expected[name]}"
            raise ValueError(f"{name}: {shapes}; use the config.json that belongs to these weights")
        seen.add(name)
        yield name, tensor
    missing = [name for name in expected if name not in seen]
    if missing:
        raise ValueError(f"{missing[0]}: missing, with {len(missing) - 1} others; the weights are not complete")
