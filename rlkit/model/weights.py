"""Our parameters and their published names: one table, read in both directions.

Published checkpoints hold one matrix per expert and projection; we stack the experts. All other names are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from rlkit.model.config import DeepseekV3Config

if TYPE_CHECKING:
    from rlkit.model.deepseek import DeepseekV3


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a published tensor lives: in `name`, all of it, or the rows `start:stop` of one expert."""

    name: str
    expert: int | None = None
    start: int = 0
    stop: int | None = None

    def view(self, tensor: Tensor) -> Tensor:
        """The part of our tensor that the published name stands for; writing to it writes to ours."""
        return tensor if self.expert is None else tensor[self.expert, self.start : self.stop]


def published_names(config: DeepseekV3Config) -> dict[str, Place]:
    """The table: every published name of a model with this config, and where we keep it."""
    table = {name: Place(name=name) for name in ("model.embed_tokens.weight", "model.norm.weight")}
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = Place(name="lm_head.weight")
    queries = ("q_proj",) if config.q_lora_rank is None else ("q_a_proj", "q_a_layernorm", "q_b_proj")
    attention = (*queries, "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
    projections = ("gate_proj", "up_proj", "down_proj")
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        same = [f"{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")]
        same += [f"{layer}.self_attn.{part}.weight" for part in attention]
        if i < config.first_k_dense_replace:
            same += [f"{layer}.mlp.{part}.weight" for part in projections]
        else:
            same += [f"{layer}.mlp.gate.weight", f"{layer}.mlp.gate.e_score_correction_bias"]
            same += [f"{layer}.mlp.shared_experts.{part}.weight" for part in projections]
            table.update(_expert_names(f"{layer}.mlp.experts", config))
        table.update({name: Place(name=name) for name in same})
    return table


def _expert_names(prefix: str, config: DeepseekV3Config) -> Iterator[tuple[str, Place]]:
    width = config.moe_intermediate_size
    fused, down = f"{prefix}.gate_up_proj", f"{prefix}.down_proj"
    for j in range(config.n_routed_experts):
        yield f"{prefix}.{j}.gate_proj.weight", Place(name=fused, expert=j, stop=width)
        yield f"{prefix}.{j}.up_proj.weight", Place(name=fused, expert=j, start=width)
        yield f"{prefix}.{j}.down_proj.weight", Place(name=down, expert=j)


def checkpoint_weights(model: DeepseekV3) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its published name, as a view without gradient."""
    ours = model.state_dict()
    for name, place in published_names(model.config).items():
        yield name, place.view(ours[place.name])
    if model.config.tie_word_embeddings:  # vLLM reads the head from the checkpoint even when it is tied
        yield "lm_head.weight", ours["lm_head.weight"]


def load_weights(
    model: DeepseekV3, weights: Iterable[tuple[str, Tensor]], files: Mapping[str, str] | None = None
) -> None:
    """Copy published tensors into the model, casting to its dtypes.

    ValueError for a tensor that is missing, unknown, given twice or of another shape; `files` tells which file each
    came from, for the message.
    """
    ours = model.state_dict()
    table = published_names(model.config)
    seen: set[str] = set()
    for name, tensor in weights:
        where = f"{name} in {files[name]}" if files and name in files else name
        if name not in table:
            if name == "lm_head.weight":  # tied: the file may repeat the embedding
                continue
            raise ValueError(f"{where}: this model has no such weight; check config.json against the checkpoint")
        if name in seen:
            raise ValueError(f"{where}: given twice; remove one of the copies")
        target = table[name].view(ours[table[name].name])
        if tensor.shape != target.shape:
            shapes = f"shape {tuple(tensor.shape)}, but config.json makes it {tuple(target.shape)}"
            raise ValueError(f"{where}: {shapes}; use the config.json that belongs to these weights")
        target.copy_(tensor)
        seen.add(name)
    missing = [name for name in table if name not in seen]
    if missing:
        raise ValueError(f"{missing[0]}: missing, with {len(missing) - 1} others; the checkpoint is not complete")
