"""DeepSeek-V3 (arXiv:2412.19437), for training on packed samples.

Module names are the published ones, so `state_dict()` differs from a checkpoint only in that experts are stacked.
With a share of the experts, or as a stage of a pipeline, it is what one of several ranks holds, and it answers together
with the others only.
`rlkit.model.precision` makes a model compute in FP8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlkit.errors import UserError
from rlkit.model.backbone import Backbone
from rlkit.model.base import CausalLM
from rlkit.model.config import DeepseekV3Config
from rlkit.model.decode import LatentCache, decode_step, prefill
from rlkit.model.experts import ALL, Experts, ExpertShare
from rlkit.model.files.folder import Checkpoint, write_checkpoint
from rlkit.model.files.names import Place, published_names
from rlkit.model.files.shards import MAX_SHARD_BYTES
from rlkit.model.files.weights import copy_weights, published_weights
from rlkit.model.lora import merged
from rlkit.model.meta import on_meta
from rlkit.model.moe import Router
from rlkit.model.mtp import mtp_hidden
from rlkit.model.ragged import lay_out_pack
from rlkit.model.size import ROUTED
from rlkit.model.stages import WHOLE, Stage, elsewhere
from rlkit.model.trace import trace


class DeepseekV3(CausalLM):
    """A causal language model; weights are drawn from normal(0, initializer_range) with torch's global generator."""

    config_class = DeepseekV3Config

    def __init__(self, config: DeepseekV3Config, share: ExpertShare = ALL, stage: Stage = WHOLE) -> None:
        super().__init__()
        self.config, self.share, self.stage, self.num_stages = config, share, stage, stage.size
        self.model = Backbone(config, share, stage)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if stage.first else elsewhere()
        self._tie()
        self.apply(self._draw)

    def _tie(self) -> None:
        if self.config.tie_word_embeddings and self.stage.first:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _draw(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding | Router):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, Experts):
            nn.init.normal_(module.gate_up_proj, std=std)
            nn.init.normal_(module.down_proj, std=std)

    def hidden(self, tokens_T: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Computes the hidden states after the final norm, [T] -> [T, D]; `lengths` as in `forward`."""
        return self.model(tokens_T, lay_out_pack(tokens_T, lengths))

    def forward(self, tokens: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Computes the logits of the next token: [T] -> [T, V], or [B, T] -> [B, T, V] for B samples of one length.

        `lengths` splits [T] into samples that do not see each other; None means one sample. Raises ValueError if they
        do not sum to T.
        """
        if tokens.dim() == 2:
            if lengths is not None:
                raise ValueError(f"lengths={tuple(lengths)} with tokens [B, T]={tuple(tokens.shape)}: flatten them")
            lengths = (tokens.shape[1],) * tokens.shape[0]
        x_TD = self.hidden(tokens.flatten(), lengths)
        return self.lm_head(x_TD).unflatten(0, tokens.shape)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, share: ExpertShare = ALL, stage: Stage = WHOLE
    ) -> DeepseekV3:
        """Loads a Hugging Face folder (config.json and safetensors in fp32, bf16 or FP8) as parameters of `dtype`.

        Of the layers those of `stage` and of the routed experts those of `share` alone are read, so that no more than
        they and one tensor are in memory.
        Raises UserError, with the file and the tensor, for a folder that is missing, incomplete, not finite or of
        another architecture.
        """
        checkpoint = Checkpoint.open(path)
        config = checkpoint.config
        if type(config) is not cls.config_class:
            raise UserError(f"{path}: config.json describes a {type(config).__name__}, and not a {cls.__name__}")
        table = published_names(config)
        checkpoint.check(table)
        for fault in checkpoint.copy_faults(table):
            raise UserError(str(fault))
        # Nothing is drawn for weights that the file replaces, and memory is taken once, in the dtype that is wanted.
        with on_meta():
            model = cls(config, share, stage)
        model = model.to(dtype).to_empty(device="cpu")
        model._tie()  # to_empty gives every name memory of its own
        held = model.published()
        model.load_weights((name, checkpoint.weight(name)) for name in checkpoint.weights if name in held)
        return model

    def save_checkpoint(self, path: str | Path, dtype: str = "bf16", max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """Writes config.json and weights for transformers and vLLM; the folder appears whole or not at all.

        `dtype` is "bf16", "fp32", "fp8" (published V3's blocks, made from the weights rounded to bf16) or "fp8_weights"
        (the same with power-of-two scales); the router's correction bias is fp32 in all. Raises ValueError for any
        other dtype.
        """
        weights, table, raw = self.checkpoint_weights(), published_names(self.config), self.config.to_hf()
        write_checkpoint(path, weights, table, raw, dtype, max_shard_bytes=max_shard_bytes)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, LatentCache]:
        """Runs the prompts once; see `rlkit.model.decode.prefill`."""
        return prefill(self.model, self.lm_head, prompts)

    def decode_step(self, tokens_B: Tensor, cache: LatentCache) -> tuple[Tensor, LatentCache]:
        """Feeds one token per sample; see `rlkit.model.decode.decode_step`."""
        return decode_step(self.model, self.lm_head, tokens_B, cache)

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Runs one sequence and returns the output of every block; see `rlkit.model.trace`."""
        return trace(self.model, tokens)

    def recompute(self) -> None:
        """Lets every block keep nothing for backward but its input, from now on; see `rlkit.model.block`."""
        for layer in (*self.model.blocks(), *self.model.mtp_modules()):
            layer.recomputed = True

    def routers(self) -> Mapping[str, int]:
        """Returns the routers of all layers, also of those on other ranks, and how many experts each has."""
        cfg = self.config
        layers = range(cfg.first_k_dense_replace, cfg.num_hidden_layers + cfg.num_nextn_predict_layers)
        return {f"model.layers.{layer}.mlp.gate": cfg.n_routed_experts for layer in layers}

    def mtp_modules(self) -> Sequence[nn.Module]:
        """Returns the modules for multi-token prediction, depth 1 first."""
        return self.model.mtp_modules()

    def mtp_hidden(
        self, tokens_T: Tensor, lengths: Sequence[int], hidden_TD: Tensor, *, detached: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields places and hidden states of each depth; see `rlkit.model.mtp.mtp_hidden`."""

        def embed(tokens_M: Tensor) -> Tensor:
            embedded_MD = self.model.embed_tokens(tokens_M)
            return embedded_MD.detach() if detached else embedded_MD

        start_TD = hidden_TD.detach() if detached else hidden_TD
        return mtp_hidden(self.model.mtp_modules(), tokens_T, lengths, start_TD, embed, self.model.rotations)

    def checkpoint_weights(self, state: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields every weight under its published name, without gradient, and with LoRA merged in."""
        return published_weights(merged(self, state), self._places())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copies published tensors into the model; raises ValueError as `copy_weights` does."""
        copy_weights(weights, self.state_dict(), self._places())

    def published(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the published name and the shape of every weight."""
        return {name: place.shape for name, place in self._places().items()}

    def _places(self) -> dict[str, Place]:
        """Returns the table of names, of what is here."""
        here = set(merged(self))  # below LoRA a weight has another name
        table = published_names(self.config, self.share)
        return {name: place for name, place in table.items() if place.name in here}

    def all_published(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the published name and the shape of every weight, of all experts."""
        return {name: place.shape for name, place in published_names(self.config).items()}

    def holders(self, name: str, num_ranks: int) -> range:
        """Returns which of the ranks hold a weight: those of its stage; of E parts of the experts, rank r has r % E."""
        layer = name.removeprefix("model.layers.").partition(".")[0]
        peers = num_ranks // self.stage.size
        first = self.stage.of(int(layer) if layer.isdecimal() else None, self.config.num_hidden_layers) * peers
        expert = name.partition(ROUTED)[2].partition(".")[0]
        if not expert or self.share.size == 1:
            return range(first, first + peers)
        part = int(expert) // (self.config.n_routed_experts // self.share.size)
        return range(first + part, first + peers, self.share.size)

    def fp8_names(self) -> frozenset[str]:
        """Returns the published names of the matrices that FP8 holds: of attention, MLPs and experts."""
        return frozenset(name for name, place in published_names(self.config).items() if place.fp8)

    def core(self) -> nn.Module:
        """Returns this module: its submodules have the published names."""
        return self
