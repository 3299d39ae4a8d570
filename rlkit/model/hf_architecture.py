"""The architecture of a model that one of transformers' classes runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rlkit.model.architecture import NO_ADAPTER_BESIDE_EXPERTS
from rlkit.model.base import CausalLM
from rlkit.model.config import CONFIG
from rlkit.model.files.hf_folder import HfFolder
from rlkit.model.files.sent import Sent, plain_table
from rlkit.model.meta import on_meta
from rlkit.model.size import Size, count_active, count_parameters
from rlkit.model.split import padded_vocabulary, split_problem

EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")
"""What config.json may call the number of routed experts."""
DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size")
"""The sizes that tensor parallelism divides, by their names in config.json."""
STRETCHED = ("dynamic", "longrope")
"""Kinds of RoPE whose angles depend on the longest sample of a batch beyond the original context."""
NO_LIMIT = 2**31
"""Positions of a model whose config.json sets no bound."""


@dataclass(frozen=True, slots=True)
class HfArchitecture:
    """An `Architecture` for `HfModel`."""

    files: HfFolder

    @classmethod
    def from_folder(cls, folder: Path) -> HfArchitecture:
        """Reads config.json; raises UserError if it is missing or describes a model that cannot be trained here."""
        return cls(HfFolder.read(folder))

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.files.text_config.vocab_size

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the model."""
        return self.files.text_config.num_hidden_layers

    @property
    def max_position_embeddings(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        return getattr(self.files.text_config, "max_position_embeddings", None) or NO_LIMIT

    @property
    def exact_positions(self) -> int:
        """The original context, where RoPE looks at the longest sample of the batch beyond it; else all positions."""
        text = self.files.text_config
        rope = getattr(text, "rope_parameters", None) or {}
        if rope.get("rope_type") not in STRETCHED:
            return self.max_position_embeddings
        original = getattr(text, "original_max_position_embeddings", None)
        return int(rope.get("original_max_position_embeddings") or original or self.max_position_embeddings)

    @property
    def num_mtp_modules(self) -> int:
        """Always 0: transformers leaves out the modules for multi-token prediction when it loads a model."""
        return 0

    def size(self) -> Size:
        """Counts parameters; the cache keeps keys and values of all key heads, or DeepSeek's latent."""
        text, shapes = self.files.text_config, self.files.published
        experts = next((getattr(text, key) for key in EXPERTS if getattr(text, key, None)), 1)
        return Size(
            parameters=count_parameters(shapes),
            active_parameters=count_active(
                shapes,
                chosen_share=getattr(text, "num_experts_per_tok", experts) / experts,
                unread=0 if self.files.tied else (self.vocab_size - 1) * text.hidden_size,
            ),
            mtp_parameters=0,
            cache_name="KV cache",
            cache_numbers=self._cache_numbers(),
        )

    def _cache_numbers(self) -> int:
        text = self.files.text_config
        if getattr(text, "kv_lora_rank", None):
            return text.kv_lora_rank + text.qk_rope_head_dim
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        return 2 * (getattr(text, "num_key_value_heads", None) or heads) * head_dim

    def empty_model(self) -> CausalLM:
        """Makes the model on the meta device."""
        with on_meta():
            return self.new_model()

    def new_model(self) -> CausalLM:
        """Makes the model with new weights, drawn from torch's global generator as transformers does it."""
        from transformers import AutoModelForCausalLM  # takes seconds to import

        from rlkit.model.hf import HfModel

        return HfModel(AutoModelForCausalLM.from_config(self.files.config), self.files)

    def check_files(self) -> None:
        """Compares the headers of the weight files with the model; raises UserError naming file, tensor and fix."""
        self.files.check()

    def write(self, path: Path, weights: Iterable[tuple[str, Tensor]], dtype: str) -> None:
        """Writes these published weights beside the base's own config.json and generation_config.json."""
        self.files.write(path, weights, dtype)

    def sent(self) -> Mapping[str, Sent]:
        """Returns what an engine is sent at every sync; a tied head is sent to those that ask for it."""
        return plain_table(self.files.published, self.files.tied)

    def vllm_problem(self, *, on_gpu: bool) -> str | None:
        """Says that config.json lacks words without which vLLM builds DeepSeek's router without its bias."""
        raw = self.files.raw
        if raw["model_type"] != "deepseek_v3" or raw.get("topk_method") == "noaux_tc":
            return None
        return (
            f"{self.files.folder / CONFIG}: topk_method={raw.get('topk_method')!r}, without which vLLM does not "
            'load the router\'s bias; write "topk_method": "noaux_tc", "scoring_func": "sigmoid" into it, or use '
            "engine=torch"
        )

    def vllm_fp8_problem(self) -> str | None:
        """Never says anything: `float8_problem` says all."""
        return None

    def vllm_adapter_problem(self) -> str | None:
        """Says that the model has routed experts."""
        if not any(".experts." in name for name in self.files.published):
            return None
        return NO_ADAPTER_BESIDE_EXPERTS

    def vllm_split_problem(self, num_workers: int, *, on_gpu: bool) -> str | None:
        """Says that heads, a feed-forward width or the vocabulary cannot be divided."""
        text = self.files.text_config
        sizes = {key: getattr(text, key) for key in DIVIDED if getattr(text, key, None)}
        keys = sizes.get("num_key_value_heads")
        if keys and num_workers % keys == 0:  # then several workers hold the same one
            del sizes["num_key_value_heads"]
        sizes["vocab_size, padded"] = padded_vocabulary(self.vocab_size)
        return split_problem(sizes, num_workers, f"{self.files.folder}: ", {})

    def vllm_draft_problem(self, num_tokens: int) -> str | None:
        """Never says anything: without modules for multi-token prediction nothing is drafted."""
        return None

    def sharing_problem(self, ranks: int) -> str | None:
        """Says that every rank has all experts of this kind of model."""
        return "is run by transformers (model=hf), whose experts stay together; set it to 1"

    def stages_problem(self, stages: int) -> str | None:
        """Says that every rank has all layers of this kind of model."""
        return "is run by transformers (model=hf), whose layers stay together; set it to 1"

    def pieces_problem(self) -> str | None:
        """Says that some classes of transformers wait for ever in pieces."""
        return "is run by transformers (model=hf), some of whose layers wait for ever in pieces; set it to 2"

    def float8_problem(self) -> str | None:
        """Says that only our own class has a table of the matrices that FP8 is for."""
        return "model=hf has no table of the matrices that FP8 is for; use trainer.dtype=bf16, or model=deepseek"

    def float8_summary(self) -> str:
        """Says that there are none."""
        return "no matrices"

    def balance_problem(self) -> str | None:
        """Says that this kind of model is never balanced."""
        return "is run by transformers (model=hf), whose routers stay as they are; set it to 0"

    def bias_problem(self) -> str | None:
        """Says that this kind of model is never balanced."""
        return self.balance_problem()
