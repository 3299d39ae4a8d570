"""Our parameters and their published names, in one table that is read in both directions.

Published checkpoints hold one matrix per expert and projection; we stack the experts. All other names are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from torch import Tensor

from rlkit.model.config import DeepseekV3Config, ScorerConfig
from rlkit.model.experts import ALL, ExpertShare
from rlkit.model.routing import RULES

HEAD = "lm_head.weight"
SCORE = "score.weight"
"""The head of a reward model, under the name of transformers' classes for sequence classification."""
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Says where a published tensor of `shape` lives: in all of our `name`, or in rows `start:stop` of an expert there.

    Experts are counted as in the stack of the rank that holds them.
    """

    name: str
    shape: tuple[int, ...]
    fp8: bool = False
    """An FP8 checkpoint holds it in block FP8: the matrices of attention, MLPs and experts, but not of the router."""
    expert: int | None = None
    start: int = 0
    stop: int | None = None
    copy: bool = False
    """A checkpoint may repeat a tensor: a head that is tied to the embedding, and the embedding and the head that an
    MTP module brings along. We keep one tensor, under `name`, and a checkpoint may leave the repetition out."""

    def view(self, tensor: Tensor) -> Tensor:
        """Returns the part of our tensor that the published name stands for; writing to it writes to ours."""
        return tensor if self.expert is None else tensor[self.expert, self.start : self.stop]


@lru_cache(maxsize=8)  # V3's has 92,000 entries, and a plan asks for it six times
def published_names(config: DeepseekV3Config, share: ExpertShare = ALL) -> Mapping[str, Place]:
    """Returns the table: every published name of a model with this config, and where we keep it.

    Of the routed experts it has those of `share`, whose rank holds them alone.

    Modules for multi-token prediction follow the last layer, as layers num_hidden_layers and on; each brings a copy of
    embedding and head.
    """
    vocabulary, hidden = (config.vocab_size, config.hidden_size), (config.hidden_size,)
    table = {
        EMBEDDING: Place(name=EMBEDDING, shape=vocabulary),
        "model.norm.weight": Place(name="model.norm.weight", shape=hidden),
    }
    tied = config.tie_word_embeddings
    if isinstance(config, ScorerConfig):
        table[SCORE] = Place(name=SCORE, shape=(1, config.hidden_size))
    else:
        table[HEAD] = Place(name=EMBEDDING if tied else HEAD, shape=vocabulary, copy=tied)
    for i in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        prefix = f"model.layers.{i}"
        rows = _layer_shapes(config, dense=i < config.first_k_dense_replace)
        if i >= config.first_k_dense_replace:
            table.update(_expert_places(f"{prefix}.mlp.experts", config, share))
        if i >= config.num_hidden_layers:
            rows |= {"enorm.weight": hidden, "hnorm.weight": hidden, "shared_head.norm.weight": hidden}
            rows |= {"eh_proj.weight": (config.hidden_size, 2 * config.hidden_size)}
            for row, ours in (("embed_tokens", EMBEDDING), ("shared_head.head", table[HEAD].name)):
                table[f"{prefix}.{row}.weight"] = Place(name=ours, shape=vocabulary, copy=True)
        for row, shape in rows.items():
            linear = row.startswith(("self_attn.", "mlp.")) and len(shape) == 2 and row != "mlp.gate.weight"
            table[f"{prefix}.{row}"] = Place(name=f"{prefix}.{row}", shape=shape, fp8=linear)
    return MappingProxyType(table)


def _layer_shapes(config: DeepseekV3Config, dense: bool) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of one layer but for its routed experts."""
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


def _expert_places(prefix: str, config: DeepseekV3Config, share: ExpertShare) -> Iterator[tuple[str, Place]]:
    width, hidden = config.moe_intermediate_size, config.hidden_size
    fused, down = f"{prefix}.gate_up_proj", f"{prefix}.down_proj"
    for i, j in enumerate(share.of(config.n_routed_experts)):
        gate = Place(name=fused, shape=(width, hidden), fp8=True, expert=i, stop=width)
        yield f"{prefix}.{j}.gate_proj.weight", gate
        yield f"{prefix}.{j}.up_proj.weight", replace(gate, start=width, stop=None)
        yield f"{prefix}.{j}.down_proj.weight", Place(name=down, shape=(hidden, width), fp8=True, expert=i)
