"""The shape of a DeepSeek-V3 model, read from and written to Hugging Face's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rlkit.checks import MOST, is_number, is_whole, shown
from rlkit.errors import UserError
from rlkit.model.routing import RULES

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
# What our code computes and a config.json may contradict: key -> the only value we can honour.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "moe_layer_freq": 1,
    "rope_interleave": True,
}
PUBLISHED = {"sigmoid": ("deepseek_v3", "DeepseekV3ForCausalLM"), "softmax": ("deepseek_v2", "DeepseekV2ForCausalLM")}
"""For each router rule, the model_type and architecture under which its checkpoints are published; each class has one
rule."""
LANGUAGE, SCORING = "ForCausalLM", "ForSequenceClassification"
"""How the names of transformers' classes end: those of language models, and those with a head that scores."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GROUPED_ROWS = 8
"""Grouped matrix products want rows of 16 bytes: 8 numbers in bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """Rotary angles stretched to a longer context (arXiv:2309.00071), under the keys of a published `rope_scaling`.

    Example: DeepSeek-V3 is `Yarn(factor=40, original_max_position_embeddings=4096, mscale_all_dim=1.0)`.
    """

    factor: float
    """The new context is this many times the original one."""
    original_max_position_embeddings: int
    """The length that the model was trained on before."""
    beta_fast: float = 32.0
    """Pairs that turn more often than this in the original context keep their frequency."""
    beta_slow: float = 1.0
    """Pairs that turn less often than this are interpolated by `factor`."""
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    """Attention logits grow by (0.1 mscale_all_dim ln factor + 1)^2, those of the rotary part by that of mscale."""

    def __post_init__(self) -> None:
        """Refuses what cannot be computed, and what transformers and DeepSeek's code compute differently."""
        for key, value in asdict(self).items():
            _check(is_number(value), f"rope_scaling.{key}", value, "give a number, and a finite one")
        size = self.original_max_position_embeddings
        fix = "give the context length before YaRN, in tokens"
        _check(is_whole(size) and 0 < size <= MOST, "rope_scaling.original_max_position_embeddings", size, fix)
        _check(self.factor >= 1, "rope_scaling.factor", self.factor, "give a number of at least 1")
        fix = f"give a number above 0 and below beta_fast={self.beta_fast}"
        _check(0 < self.beta_slow < self.beta_fast, "rope_scaling.beta_slow", self.beta_slow, fix)
        _check(self.mscale > 0, "rope_scaling.mscale", self.mscale, "give a positive number; 1.0 is usual")
        both = self.mscale_all_dim > 0 or (self.mscale_all_dim == 0 and self.mscale == 1)
        fix = f"give a positive number beside mscale={self.mscale}, or neither: implementations differ there"
        _check(both, "rope_scaling.mscale_all_dim", self.mscale_all_dim, fix)

    @property
    def reach(self) -> int:
        """Returns the longest context that it stretches to, in tokens."""
        return round(self.factor * self.original_max_position_embeddings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekV3Config:
    """Sizes of a DeepSeek-V3 model under transformers' names; the defaults are V3's (arXiv:2412.19437, section 4.2).

    Example: `DeepseekV3Config(vocab_size=512, hidden_size=128, num_hidden_layers=4, ..., q_lora_rank=None)`
    """

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    """Width of the MLP in the first, dense layers."""
    moe_intermediate_size: int = 2048
    """Width of one expert."""
    num_hidden_layers: int = 61
    num_attention_heads: int = 128
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    """Groups of experts that one token may use."""
    scoring_func: str = "sigmoid"
    """The router's rule: "sigmoid", V3's with its bias, or "softmax", V2's; the rest of the model is the same."""
    first_k_dense_replace: int = 3
    """Layers before this one have a dense MLP."""
    num_nextn_predict_layers: int = 0
    """Modules for multi-token prediction (D in section 2.2 of the paper), each one more layer; published V3 has 1."""
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    q_lora_rank: int | None = 1536
    """None means that queries are projected in one step."""
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    rope_theta: float = 10000.0
    rope_scaling: Yarn | None = None
    """None means plain RoPE."""
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    """One end token or several; generation_config.json may name more (see `rlkit.model.files.end_tokens`)."""
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built with a UserError that names the key, its value and the fix."""
        values = asdict(self)
        counts = ("first_k_dense_replace", "num_nextn_predict_layers")
        for field in fields(self):
            key, kind, value = field.name, str(field.type), values[field.name]
            if kind.startswith("int") and key not in (*TOKEN_IDS, *counts):
                none = value is None and "None" in kind
                fine = none or (is_whole(value) and 0 < value <= MOST)
                _check(fine, key, value, f"give a positive whole number of at most {MOST}")
            elif kind == "float":
                _check(is_number(value) and value > 0, key, value, "give a positive number, and a finite one")
        self._check_rule()
        self._check_experts()
        for key, size in (("hidden_size", self.hidden_size), ("moe_intermediate_size", self.moe_intermediate_size)):
            _check(size % GROUPED_ROWS == 0, key, size, f"give a multiple of {GROUPED_ROWS}")
        _check(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", self.qk_rope_head_dim, "give an even number")
        self._check_ids()
        if self.rope_scaling is not None:
            length, reach = self.max_position_embeddings, self.rope_scaling.reach
            fix = f"rope_scaling reaches {reach} (factor x original_max_position_embeddings); raise its factor"
            _check(length <= reach, "max_position_embeddings", length, fix)

    def _check_ids(self) -> None:
        last = self.vocab_size - 1
        for key in TOKEN_IDS:
            value = getattr(self, key)
            several = key == "eos_token_id" and isinstance(value, tuple)
            ids = value if several else () if value is None else (value,)
            inside = all(type(token) is int and 0 <= token <= last for token in ids)
            _check(inside, key, value, f"give one id in 0..{last} (vocab_size - 1), or null")

    def _check_experts(self) -> None:
        dense, layers = self.first_k_dense_replace, self.num_hidden_layers
        _check(0 <= dense <= layers, "first_k_dense_replace", dense, f"give 0..{layers} (num_hidden_layers)")
        depth = self.num_nextn_predict_layers
        _check(is_whole(depth) and 0 <= depth <= MOST, "num_nextn_predict_layers", depth, "give 0 (none) or more")
        if dense == layers and not depth:  # the modules have experts even where no layer has
            return
        experts, groups = self.n_routed_experts, self.n_group
        fix = f"it must divide n_routed_experts={experts} into groups of at least 2"
        _check(experts % groups == 0 and experts // groups >= 2, "n_group", groups, fix)
        _check(self.topk_group <= groups, "topk_group", self.topk_group, f"give at most n_group={groups}")
        reach = self.topk_group * experts // groups
        fix = f"the {self.topk_group} chosen groups (topk_group) hold only {reach} experts"
        _check(self.num_experts_per_tok <= reach, "num_experts_per_tok", self.num_experts_per_tok, fix)

    def _check_rule(self) -> None:
        rules = [rule for rule in RULES if rule in PUBLISHED]
        _check(self.scoring_func in rules, "scoring_func", self.scoring_func, f"give one of {', '.join(rules)}")
        if self.scoring_func != "softmax":
            return
        # transformers' V2 leaves the weights as they are, DeepSeek's code normalises them, vLLM also scales them then.
        fix = "implementations of V2's softmax router differ there; set it to false"
        _check(not self.norm_topk_prob, "norm_topk_prob", self.norm_topk_prob, fix)
        fix = f"transformers' V2 wants a multiple of num_attention_heads={self.num_attention_heads}"
        _check(self.hidden_size % self.num_attention_heads == 0, "hidden_size", self.hidden_size, fix)

    @property
    def has_experts(self) -> bool:
        """Returns whether any layer has routed experts."""
        return self.first_k_dense_replace < self.num_hidden_layers

    @property
    def topk_method(self) -> str:
        """Returns the name that config.json gives to how experts are chosen."""
        if self.scoring_func == "sigmoid":
            return "noaux_tc"
        return "group_limited_greedy" if self.topk_group < self.n_group else "greedy"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> DeepseekV3Config:
        """Reads the content of a config.json; raises UserError where it asks for what is not computed here."""
        raw = _with_router(raw)
        for key, wanted in FIXED.items():
            _check(raw.get(key, wanted) == wanted, key, raw.get(key), f"only {wanted!r} is supported")
        heads = raw.get("num_attention_heads", cls.__dataclass_fields__["num_attention_heads"].default)
        kv_heads = raw.get("num_key_value_heads") or heads
        _check(kv_heads == heads, "num_key_value_heads", kv_heads, f"it must equal num_attention_heads={heads}")
        quant = raw.get("quantization_config")
        fix = "a run does not start from FP8: `rlkit checkpoint convert IN OUT --dtype bf16` first"
        _check(quant is None, "quantization_config", quant, fix)
        known = {field.name: raw[field.name] for field in fields(cls) if field.name in raw}
        if isinstance(ends := known.get("eos_token_id"), list):
            known["eos_token_id"] = tuple(ends)
        known["num_nextn_predict_layers"] = raw.get("num_nextn_predict_layers") or 0  # some files say null
        scores = any(str(name).endswith(SCORING) for name in raw.get("architectures") or ())
        config = (ScorerConfig if scores else cls)(**known | _read_rope(raw))
        method = raw.get("topk_method", config.topk_method)
        same = method == config.topk_method or (method == "group_limited_greedy" and config.topk_method == "greedy")
        fix = f"only {config.topk_method!r} is supported with scoring_func={config.scoring_func!r}, "
        fix += f"n_group={config.n_group} and topk_group={config.topk_group}"
        _check(same or not config.has_experts, "topk_method", method, fix)
        return config

    @classmethod
    def from_folder(cls, path: str | Path) -> DeepseekV3Config:
        """Reads `path`/config.json; raises UserError if it is missing, not JSON, or describes another architecture."""
        folder = Path(path)
        raw = read_config(folder)
        try:
            return cls.from_hf(raw)
        except UserError as error:
            raise UserError(f"{folder / CONFIG}: {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a config.json that transformers and vLLM load as it is.

        topk_method and scoring_func are there for vLLM, which builds no e_score_correction_bias without them.
        """
        yarn = {} if self.rope_scaling is None else asdict(self.rope_scaling)
        model_type, architecture = PUBLISHED[self.scoring_func]
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "topk_method": self.topk_method,
            **FIXED,
            **asdict(self),
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "num_key_value_heads": self.num_attention_heads,
            # The published form, and the one of transformers 5.
            "rope_scaling": {"type": "yarn", **yarn} if yarn else None,
            "rope_parameters": {"rope_type": "yarn" if yarn else "default", "rope_theta": self.rope_theta, **yarn},
            "use_cache": True,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerConfig(DeepseekV3Config):
    """The same sizes of a reward model: in the place of the head it has one that gives a score."""

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a config.json that transformers loads for sequence classification with one label."""
        raw = DeepseekV3Config.to_hf(self)
        names = [name.replace(LANGUAGE, SCORING) for name in raw["architectures"]]
        return raw | {"architectures": names, "id2label": {"0": "score"}, "label2id": {"score": 0}}


def read_json(folder: Path) -> dict[str, Any]:
    """Returns the content of any checkpoint's config.json; raises UserError if it is not there or not JSON."""
    file = folder / CONFIG
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; give the folder of a checkpoint as model.path (a model of the hub has to be "
            "downloaded first: hf download OWNER/NAME --local-dir FOLDER)"
        )
    if not file.is_file():
        raise UserError(f"{file}: missing; give a folder that save_checkpoint or save_pretrained wrote")
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{file}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{file}: model_type={raw!r}, but there should be keys and values; copy the file again")
    return raw


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint's config.json; raises UserError if it is not that of a DeepSeek-V3 or V2."""
    raw = read_json(folder)
    if raw.get("model_type") not in _model_types():
        kinds = " and ".join(map(repr, _model_types()))
        fix = f"only {kinds} can be loaded by our own class; model=hf loads others through transformers"
        raise UserError(f"{folder / CONFIG}: model_type={raw.get('model_type')!r}; {fix}")
    return raw


def _model_types() -> dict[str, str]:
    return {model_type: rule for rule, (model_type, _) in PUBLISHED.items()}


def _with_router(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Spells the router's rule out: transformers leaves it to the class, and V2-Lite has nulls for groups."""
    kind = raw.get("model_type", "deepseek_v3")
    _check(kind in _model_types(), "model_type", kind, f"only {' and '.join(map(repr, _model_types()))} are supported")
    rule = _model_types()[kind]
    found = raw.get("scoring_func", rule)
    _check(found == rule, "scoring_func", found, f"only {rule!r} is supported with model_type={kind!r}")
    if rule == "sigmoid":
        return {**raw, "scoring_func": rule}
    defaults = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": False}
    given = {key: value for key, value in raw.items() if value is not None or key not in defaults}
    return {**defaults, **given, "scoring_func": rule}


def _read_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Reads rope_theta and YaRN: transformers 4 writes two keys, transformers 5 puts both into rope_parameters."""
    found: dict[str, Any] = {"rope_scaling": None}
    for place in ("rope_scaling", "rope_parameters"):
        given = {key: value for key, value in (raw.get(place) or {}).items() if value is not None}
        kinds = {given.pop(key, "default") for key in ("type", "rope_type")} - {"default"}
        if "rope_theta" in given:
            found["rope_theta"] = given.pop("rope_theta")
        if not kinds:
            continue
        known = [field.name for field in fields(Yarn)]
        unknown = [key for key in given if key not in known]
        missing = [key for key in known[:2] if key not in given]
        missing += ["mscale"] if "mscale_all_dim" in given and "mscale" not in given else []
        _check(kinds == {"yarn"}, place, raw[place], "only YaRN (type yarn) is supported")
        _check(not unknown, place, raw[place], f"{', '.join(unknown)} is not supported; there are {', '.join(known)}")
        _check(not missing, place, raw[place], f"{' and '.join(missing)} missing; YaRN needs it")
        yarn = Yarn(**given)
        _check(found["rope_scaling"] in (None, yarn), place, raw[place], "it contradicts rope_scaling; remove one")
        found["rope_scaling"] = yarn
    return found


def _check(fine: bool, key: str, value: object, fix: str) -> None:
    if not fine:
        raise UserError(f"{key}={shown(value)}: {fix}")
