"""Our parameters and their published names: one table, read in both directions.

Published checkpoints hold one matrix per expert and projection; we stack the experts. All other names are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlkit.model.config import DeepseekV3Config
from rlkit.model.lora import merged
from rlkit.model.routing import RULES

if TYPE_CHECKING:
    from rlkit.model.deepseek import DeepseekV3

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a published tensor of `shape` lives: in our `name`, all of it, or the rows `start:stop` of one expert."""

    name: str
    shape: tuple[int, ...]
    fp8: bool = False
    """An FP8 checkpoint holds it in block FP8: the matrices of attention, MLPs and experts, but not of the router."""
    expert: int | None = None
    start: int = 0
    stop: int | None = None
    copy: bool = False
    """Embedding or head as an MTP module brings them along: our one copy is the main model's, under `name`."""

    def view(self, tensor: Tensor) -> Tensor:
        """The part of our tensor that the published name stands for; writing to it writes to ours."""
        return tensor if self.expert is None else tensor[self.expert, self.start : self.stop]


def published_names(config: DeepseekV3Config) -> dict[str, Place]:
    """The table: every published name of a model with this config, and where we keep it.

    Modules for multi-token prediction follow the last layer, as layers num_hidden_layers and on; each brings a copy of
    embedding and head.
    """
    vocabulary, hidden = (config.vocab_size, config.hidden_size), (config.hidden_size,)
    table = {
        EMBEDDING: Place(name=EMBEDDING, shape=vocabulary),
        "model.norm.weight": Place(name="model.norm.weight", shape=hidden),
    }
    if not config.tie_word_embeddings:
        table[HEAD] = Place(name=HEAD, shape=vocabulary)
    for i in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        prefix = f"model.layers.{i}"
        rows = _layer_shapes(config, dense=i < config.first_k_dense_replace)
        if i >= config.first_k_dense_replace:
            table.update(_expert_places(f"{prefix}.mlp.experts", config))
        if i >= config.num_hidden_layers:
            rows |= {"enorm.weight": hidden, "hnorm.weight": hidden, "shared_head.norm.weight": hidden}
            rows |= {"eh_proj.weight": (config.hidden_size, 2 * config.hidden_size)}
            head = EMBEDDING if config.tie_word_embeddings else HEAD
            for row, ours in (("embed_tokens", EMBEDDING), ("shared_head.head", head)):
                table[f"{prefix}.{row}.weight"] = Place(name=ours, shape=vocabulary, copy=True)
        for row, shape in rows.items():
            linear = row.startswith(("self_attn.", "mlp.")) and len(shape) == 2 and row != "mlp.gate.weight"
            table[f"{prefix}.{row}"] = Place(name=f"{prefix}.{row}", shape=shape, fp8=linear)
    return table


def _layer_shapes(config: DeepseekV3Config, dense: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer but for its routed experts."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    queries = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    rows: dict[str, tuple[int, ...]] = {f"{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    if config.q_lora_rank is None:
        rows["self_attn.q_proj.weight"] = (queries, hidden)
    else:
        rows["self_attn.q_a_proj.weight"] = (config.q_lora_rank, hidden)
        rows["self_attn.q_a_layernorm.weight"] = (config.q_lora_rank,)
        rows["self_attn.q_b_proj.weight"] = (queries, config.q_lora_rank)
    rows["self_attn.kv_a_proj_with_mqa.weight"] = (config.kv_lora_rank + config.qk_rope_head_dim, hidden)
    rows["self_attn.kv_a_layernorm.weight"] = (config.kv_lora_rank,)
    rows["self_attn.kv_b_proj.weight"] = (heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank)
    rows["self_attn.o_proj.weight"] = (hidden, heads * config.v_head_dim)
    if not dense:
        rows["mlp.gate.weight"] = (config.n_routed_experts, hidden)
        if RULES[config.scoring_func].has_bias:
            rows["mlp.gate.e_score_correction_bias"] = (config.n_routed_experts,)
    width = config.intermediate_size if dense else config.moe_intermediate_size * config.n_shared_experts
    mlp = "mlp" if dense else "mlp.shared_experts"
    rows |= {f"{mlp}.{part}_proj.weight": (width, hidden) for part in ("gate", "up")}
    rows[f"{mlp}.down_proj.weight"] = (hidden, width)
    return rows


def _expert_places(prefix: str, config: DeepseekV3Config) -> Iterator[tuple[str, Place]]:
    width, hidden = config.moe_intermediate_size, config.hidden_size
    fused, down = f"{prefix}.gate_up_proj", f"{prefix}.down_proj"
    for j in range(config.n_routed_experts):
        gate = Place(name=fused, shape=(width, hidden), fp8=True, expert=j, stop=width)
        yield f"{prefix}.{j}.gate_proj.weight", gate
        yield f"{prefix}.{j}.up_proj.weight", replace(gate, start=width, stop=None)
        yield f"{prefix}.{j}.down_proj.weight", Place(name=down, shape=(hidden, width), fp8=True, expert=j)


def checkpoint_weights(model: DeepseekV3) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its published name, as a view without gradient; where LoRA changes it, merged and new."""
    ours = merged(model)
    for name, place in published_names(model.config).items():
        yield name, place.view(ours[place.name])
    if model.config.tie_word_embeddings:  # vLLM reads the head from the checkpoint even when it is tied
        yield HEAD, ours[HEAD]


def load_weights(model: DeepseekV3, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy published tensors into the model, casting to its dtypes.

    The copies of embedding and head that MTP modules bring may be absent. ValueError for a tensor that is missing,
    unknown, given twice or of another shape, and for a copy that is not equal to what it copies.
    """
    ours = model.state_dict()
    table = published_names(model.config)
    copied = {place.name for place in table.values() if place.copy}
    first: dict[str, str] = {}
    seen: set[str] = set()
    for name, tensor in weights:
        if name not in table:
            if name == HEAD:  # tied: the file may repeat the embedding
                continue
            raise ValueError(f"{name}: this model has no such weight; check config.json against the checkpoint")
        if name in seen:
            raise ValueError(f"{name}: given twice; remove one of the copies")
        if tensor.shape != table[name].shape:
            shapes = f"shape {tuple(tensor.shape)}, but config.json makes it {table[name].shape}"
            raise ValueError(f"{name}: {shapes}; use the config.json that belongs to these weights")
        target = table[name].view(ours[table[name].name])
        if table[name].name in copied and first.setdefault(table[name].name, name) != name:
            if not torch.equal(tensor.to(target), target):
                other = first[table[name].name]
                raise ValueError(f"{name}: not equal to {other}; embedding and head are shared with MTP, one has to go")
        else:
            target.copy_(tensor)
        seen.add(name)
    missing = [name for name in table if name not in seen and not table[name].copy]
    if missing:
        raise ValueError(f"{missing[0]}: missing, with {len(missing) - 1} others; the checkpoint is not complete")
