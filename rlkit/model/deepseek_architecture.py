"""The architecture of our own DeepSeek class, of a checkpoint or of a new model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rlkit.model.architecture import NO_ADAPTER_BESIDE_EXPERTS
from rlkit.model.config import DeepseekV3Config
from rlkit.model.deepseek import DeepseekV3
from rlkit.model.files.folder import Checkpoint, as_stored, write_checkpoint
from rlkit.model.files.names import published_names
from rlkit.model.files.sent import Sent, sent_table
from rlkit.model.files.shards import read_headers
from rlkit.model.meta import on_meta
from rlkit.model.precision import float8_summary
from rlkit.model.routing import RULES
from rlkit.model.scorer import deepseek_class
from rlkit.model.size import Size, count_active, count_parameters
from rlkit.model.split import padded_vocabulary, split_problem
from rlkit.quant.fp8 import BLOCK

FP8_ROWS = 32
"""vLLM's FP8 kernels on the CPU take so many rows of a matrix together, and end the process where fewer are left."""
VLLM_CPU_MULTIPLE = 32
"""The expert kernels of vLLM's CPU build want rows of so many numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekArchitecture:
    """An `Architecture` for `DeepseekV3`."""

    config: DeepseekV3Config
    folder: Path | None = None
    """The checkpoint that the model comes from; None for a new model."""

    @classmethod
    def from_folder(cls, folder: Path) -> DeepseekArchitecture:
        """Reads config.json; raises UserError if it is missing or describes another model."""
        config = DeepseekV3Config.from_folder(folder)
        if config.num_nextn_predict_layers:
            config = as_stored(config, read_headers(folder))
        return cls(config=config, folder=folder)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.config.vocab_size

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the main model."""
        return self.config.num_hidden_layers

    @property
    def max_position_embeddings(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        return self.config.max_position_embeddings

    @property
    def exact_positions(self) -> int:
        """All positions: plain RoPE and YaRN turn a token by its own position, whatever else is in the batch."""
        return self.config.max_position_embeddings

    @property
    def num_mtp_modules(self) -> int:
        """Modules for multi-token prediction."""
        return self.config.num_nextn_predict_layers

    def size(self) -> Size:
        """Counts parameters; of each token and layer the cache keeps the latent and the rotary key (section 2.1.1)."""
        cfg = self.config
        shapes = {name: place.shape for name, place in published_names(cfg).items() if not place.copy}
        # Modules for multi-token prediction are stored as the layers behind the last one.
        layers = range(cfg.num_hidden_layers, cfg.num_hidden_layers + cfg.num_nextn_predict_layers)
        ahead = tuple(f"model.layers.{layer}." for layer in layers)
        main = {name: shape for name, shape in shapes.items() if not name.startswith(ahead)}
        unread = 0 if cfg.tie_word_embeddings else (cfg.vocab_size - 1) * cfg.hidden_size
        return Size(
            parameters=count_parameters(main),
            active_parameters=count_active(
                main, chosen_share=cfg.num_experts_per_tok / cfg.n_routed_experts, unread=unread
            ),
            mtp_parameters=count_parameters(shapes) - count_parameters(main),
            cache_name="latent cache",
            cache_numbers=cfg.kv_lora_rank + cfg.qk_rope_head_dim,
        )

    def empty_model(self) -> DeepseekV3:
        """Makes the model on the meta device."""
        with on_meta():
            return deepseek_class(self.config)(self.config)

    def new_model(self) -> DeepseekV3:
        """Makes the model with new weights, drawn from torch's global generator."""
        return deepseek_class(self.config)(self.config)

    def check_files(self) -> None:
        """Compares the headers of the weight files with the table of names; raises UserError naming the tensor."""
        assert self.folder is not None, "a new model has no files"
        Checkpoint.open(self.folder).check(published_names(self.config))

    def write(self, path: Path, weights: Iterable[tuple[str, Tensor]], dtype: str) -> None:
        """Writes these published weights as they come: no second model is made for them."""
        table = published_names(self.config)
        write_checkpoint(path, weights, table, self.config.to_hf(), dtype, base=self.folder)

    def sent(self) -> Mapping[str, Sent]:
        """Returns what an engine in high precision is sent at every sync, tensor by tensor."""
        return sent_table(published_names(self.config), "plain")

    def vllm_problem(self, *, on_gpu: bool) -> str | None:
        """Says that a width does not suit the CPU build of vLLM."""
        widths = {"hidden_size": self.config.hidden_size, "moe_intermediate_size": self.config.moe_intermediate_size}
        for key, width in {} if on_gpu else widths.items():
            if width % VLLM_CPU_MULTIPLE:
                where = "model.architecture." if self.folder is None else f"{self.folder}: "
                return (
                    f"{where}{key}={width}: vLLM's experts on the CPU need a multiple of {VLLM_CPU_MULTIPLE}; change "
                    "it, or use engine=torch"
                )
        return None

    def vllm_fp8_problem(self) -> str | None:
        """Says that the rows of a matrix do not suit vLLM's kernels on the CPU; `float8_problem` says so of columns."""
        cfg, where = self.config, "model.architecture." if self.folder is None else f"{self.folder}: "
        heads, rope = cfg.num_attention_heads, cfg.qk_rope_head_dim
        rows = {
            "kv_lora_rank + qk_rope_head_dim": cfg.kv_lora_rank + rope,
            "num_attention_heads x (qk_nope_head_dim + qk_rope_head_dim)": heads * (cfg.qk_nope_head_dim + rope),
            "num_attention_heads x (qk_nope_head_dim + v_head_dim)": heads * (cfg.qk_nope_head_dim + cfg.v_head_dim),
        }
        for key, width in rows.items():
            if width % FP8_ROWS:
                return (
                    f"{where}{key}={width} must be a multiple of {FP8_ROWS} for vLLM's kernels; change it, or use "
                    "engine.dtype=bf16"
                )
        return None

    def vllm_adapter_problem(self) -> str | None:
        """Says that vLLM's class for DeepSeek has routed experts."""
        return NO_ADAPTER_BESIDE_EXPERTS

    def vllm_split_problem(self, num_workers: int, *, on_gpu: bool) -> str | None:
        """Says that heads, a feed-forward width or the vocabulary cannot be divided; latents are held by all."""
        cfg, has_dense = self.config, self.config.first_k_dense_replace > 0
        sizes = {
            "num_attention_heads": cfg.num_attention_heads,
            "moe_intermediate_size": cfg.moe_intermediate_size,
            **({"intermediate_size": cfg.intermediate_size} if has_dense else {}),
            "vocab_size, padded": padded_vocabulary(cfg.vocab_size),
        }
        where = "model.architecture." if self.folder is None else f"{self.folder}: "
        unit = {} if on_gpu else {"moe_intermediate_size": VLLM_CPU_MULTIPLE}
        return split_problem(sizes, num_workers, where, unit)

    def vllm_draft_problem(self, num_tokens: int) -> str | None:
        """Says that vLLM has no drafts for the model's router, or not so many for its modules."""
        if self.config.scoring_func != "sigmoid":
            return (
                f"vLLM has no MTP for DeepSeek-V2, which scoring_func={self.config.scoring_func} stands for; set it to "
                "0, or use engine=torch"
            )
        if num_tokens > self.num_mtp_modules and num_tokens % self.num_mtp_modules:
            return (
                f"vLLM takes at most num_nextn_predict_layers={self.num_mtp_modules} or a multiple of it; change it, "
                "or use engine=torch"
            )
        return None

    def sharing_problem(self, ranks: int) -> str | None:
        """Says that there are no routed experts, or that they do not divide."""
        experts = self.config.n_routed_experts
        if self.balance_problem() is not None:
            return "has no layer with routed experts; set it to 1"
        if experts % ranks:
            return f"has n_routed_experts={experts}, which {ranks} ranks cannot divide; set it to a number that does"
        return None

    def stages_problem(self, stages: int) -> str | None:
        """Says that there are fewer layers than chunks, of which DualPipeV gives two to every stage."""
        layers = self.config.num_hidden_layers
        if layers >= 2 * stages:
            return None
        return f"has num_hidden_layers={layers}, less than two for every stage; set it to {layers // 2 or 1} or less"

    def pieces_problem(self) -> str | None:
        """Says nothing: ZeRO-3 was tried with every part of this class."""
        return None

    def float8_problem(self) -> str | None:
        """Says that a width does not divide into tiles."""
        cfg = self.config
        widths = {"hidden_size": cfg.hidden_size, "kv_lora_rank": cfg.kv_lora_rank}
        widths |= {"moe_intermediate_size": cfg.moe_intermediate_size} if self.balance_problem() is None else {}
        widths |= {"intermediate_size": cfg.intermediate_size} if cfg.first_k_dense_replace else {}
        widths |= {"q_lora_rank": cfg.q_lora_rank} if cfg.q_lora_rank is not None else {}
        widths |= {"num_attention_heads x v_head_dim": cfg.num_attention_heads * cfg.v_head_dim}
        for key, width in widths.items():
            if width % BLOCK:
                where = "model.architecture." if self.folder is None else f"{self.folder}: "
                return (
                    f"{where}{key}={width} does not divide into tiles of {BLOCK} numbers with a scale each; change it, "
                    "or use trainer.dtype=bf16"
                )
        return None

    def float8_summary(self) -> str:
        """Counts the matrices of the published table."""
        return float8_summary(published_names(self.config))

    def balance_problem(self) -> str | None:
        """Says that no layer has routed experts."""
        if self.config.has_experts or self.config.num_nextn_predict_layers:  # the modules always have experts
            return None
        return "has no layer with routed experts; set it to 0"

    def bias_problem(self) -> str | None:
        """Says that the router's rule knows no bias."""
        if RULES[self.config.scoring_func].has_bias:
            return None
        return (
            f"has scoring_func={self.config.scoring_func}, a router without a bias; set it to 0, and "
            "trainer.balance_coef above 0"
        )
