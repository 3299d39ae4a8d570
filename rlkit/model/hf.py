"""Any causal language model of transformers behind our interface: Qwen, Llama, Mistral, its own DeepSeek class.

Attention is what transformers chooses: sdpa, which keeps no [L, L] of scores, or eager where there is no sdpa.
Samples of a pack are laid in batches of similar length with padding behind each one, as for our own attention. Causal
attention never looks at padding from a real token, so no mask is made: memory grows with the tokens, of which at most a
quarter are padding, and sdpa can take its fast causal kernels on CPU and GPU. With a sliding window transformers makes
a mask [L, L] for the samples that are longer than the window.
Dropout and other noise of training are off: the model stays in evaluation mode, and gradients flow all the same.
What is not covered: logits that are not hidden states times one matrix, code shipped with a checkpoint, quantisation.
Routers that are neither DeepSeek-V3's nor a plain softmax top-k have no margins: the parity gate cannot excuse ties.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from rlkit.errors import UserError
from rlkit.model.base import CausalLM
from rlkit.model.files.hf_folder import HfFolder
from rlkit.model.files.names import HEAD
from rlkit.model.files.weights import checked
from rlkit.model.lora import merged
from rlkit.model.ragged import lay_out_pack
from rlkit.model.routing import choice_margins
from rlkit.model.trace import BLOCK

GATE = re.compile(r"model\.layers\.\d+\.mlp\.gate")
LAYER = re.compile(r"(.*?\.\d+)\.")
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""The relative error within which two ways to the same logits agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueCache:
    """Holds transformers' own cache of B samples.

    Samples are aligned at the right, with padding in front: the newest tokens of all samples stand in one column, which
    is where transformers appends, and what a sliding window drops first is padding.
    """

    layers: DynamicCache
    mask_BS: Tensor
    """1 for a token, 0 for padding."""

    @property
    def lengths_B(self) -> Tensor:
        """Counts the tokens of each sample that are in the cache."""
        return self.mask_BS.sum(1)

    def rows(self, index_B: Tensor, room: int) -> KeyValueCache:
        """Keeps (or repeats) the given samples in a new cache; it grows by itself, so `room` is not needed."""
        layers = copy.copy(self.layers)
        layers.layers = [copy.copy(layer) for layer in self.layers.layers]
        layers.batch_select_indices(index_B)
        return KeyValueCache(layers=layers, mask_BS=self.mask_BS.index_select(0, index_B))


class HfModel(CausalLM):
    """Runs a model of transformers for its hidden states and its head."""

    def __init__(self, inner: PreTrainedModel, files: HfFolder) -> None:
        super().__init__()
        self.inner = inner.eval()
        self.files = files

    @classmethod
    def from_checkpoint(cls, path: Path, dtype: torch.dtype = torch.float32) -> HfModel:
        """Loads a Hugging Face folder (config.json and safetensors) as parameters of `dtype`.

        Raises UserError for a folder that is missing or incomplete, for a weight that is not finite, and for a model
        whose logits are not its hidden states times one matrix.
        """
        files = HfFolder.read(path)
        files.check()
        with _quiet():
            model = cls(AutoModelForCausalLM.from_pretrained(path, dtype=dtype), files)
        embedding = model.inner.get_input_embeddings()
        if HEAD in files.tied and model.lm_head.weight is not embedding.weight:
            raise UserError(
                f"{path}: {HEAD} differs from the embedding, although config.json says tie_word_embeddings=true; set "
                "it to false there, or remove the tensor from the file"
            )
        for name, parameter in model.inner.named_parameters():
            if not parameter.isfinite().all():
                raise UserError(f"{path}: {name}: a number is NaN or infinite; copy the files again")
        model.check_head()
        return model

    def recompute(self) -> None:
        """Lets transformers run every layer again in backward, as its own switch does."""
        self.inner.gradient_checkpointing_enable({"use_reentrant": False})

    def train(self, mode: bool = True) -> HfModel:
        """Notes the mode, but keeps the model of transformers free of dropout."""
        super().train(mode)
        self.inner.eval()
        return self

    @property
    def lm_head(self) -> nn.Linear:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns the output head; its weight may be that of the embedding."""
        head = self.inner.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head

    @torch.no_grad()
    def check_head(self) -> None:
        """Raises UserError if logits are more than hidden states times a matrix: capped, scaled, with a bias."""
        tokens_1T = torch.arange(8, device=self.lm_head.weight.device).unsqueeze(0) % self.files.text_config.vocab_size
        # The logits of the model itself against those that `CausalLM` promises: a soft cap or a scale shows here even
        # where no key of config.json names it.
        theirs = self.inner(input_ids=tokens_1T, use_cache=False).logits
        ours = self.lm_head(self._run(input_ids=tokens_1T, use_cache=False))
        gap = float((ours - theirs).abs().max() / theirs.abs().max())
        if not gap <= ROUNDING[ours.dtype]:
            kind = self.files.config.model_type
            raise UserError(
                f"{self.files.folder}: logits of model_type={kind!r} are not hidden states times one matrix "
                f"(relative difference {gap:.1e}: a soft cap or a scale); such a model cannot be trained here"
            )

    def _run(self, **inputs: Any) -> Tensor:
        """Runs the backbone and returns the hidden states after the final norm, [N, L, D]."""
        return self.inner.base_model(**inputs).last_hidden_state

    def hidden(self, tokens_T: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Computes the hidden states after the final norm, [T] -> [T, D], one batch of similar lengths after the other.

        Raises ValueError if `lengths` do not sum to T.
        """
        ragged = lay_out_pack(tokens_T, lengths)
        return ragged.unpad([self._run(input_ids=tokens_NL, use_cache=False) for tokens_NL in ragged.pad(tokens_T)])

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, KeyValueCache]:
        """Runs the prompts once; returns the logits of each one's next token [B, V], and their cache.

        Raises ValueError if a prompt is empty.
        """
        if not all(prompts):
            raise ValueError("a prompt without tokens: there is nothing to continue; drop it")
        device, longest = self.lm_head.weight.device, max(map(len, prompts))
        # Positions count real tokens only: behind its padding a prompt has the angles that it would have alone.
        mask_BS = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        tokens_BS = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
        layers = DynamicCache(config=self.inner.config)
        hidden_BSD = self._run(
            input_ids=tokens_BS,
            attention_mask=mask_BS,
            position_ids=(mask_BS.cumsum(1) - 1).clamp(min=0),
            past_key_values=layers,
            use_cache=True,
        )
        return self.lm_head(hidden_BSD[:, -1]), KeyValueCache(layers=layers, mask_BS=mask_BS)

    def decode_step(self, tokens_B: Tensor, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """Feeds one token per sample; returns the logits of the token after it [B, V], and the longer cache."""
        mask_BS = torch.cat([cache.mask_BS, torch.ones_like(cache.mask_BS[:, :1])], dim=1)
        hidden_B1D = self._run(
            input_ids=tokens_B.unsqueeze(1),
            attention_mask=mask_BS,
            position_ids=cache.lengths_B.unsqueeze(1),
            past_key_values=cache.layers,
            use_cache=True,
        )
        return self.lm_head(hidden_B1D[:, -1]), replace(cache, mask_BS=mask_BS)

    @torch.no_grad()
    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Runs one sequence; returns every block's output [T, D] and routers' margins, as `rlkit.model.trace` does."""
        outputs: dict[str, Tensor] = {}
        hooks = []
        for name, module in self.inner.named_modules():
            router = GATE.fullmatch(name) is not None
            if not router and not BLOCK.fullmatch(name):
                continue

            def keep(module: nn.Module, _args: Any, output: Any, name: str = name, router: bool = router) -> None:
                if not router:
                    outputs[name] = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)
                elif (margins_T := self._margins(module, output)) is not None:
                    outputs[name] = margins_T.unsqueeze(-1)

            hooks.append(module.register_forward_hook(keep))
        try:
            self.hidden(torch.tensor(tokens, device=self.lm_head.weight.device))
        finally:
            for hook in hooks:
                hook.remove()
        return outputs

    def _margins(self, router: nn.Module, output: Any) -> Tensor | None:
        """Says how close each token's choice of experts is to another one, [T]; None for an unknown rule."""
        if not isinstance(output, tuple) or len(output) != 3:
            return None
        logits_TE, _, experts_TK = output
        config = self.inner.config.get_text_config(decoder=True).to_dict()
        groups, chosen = config.get("n_group") or 1, config.get("topk_group") or 1
        bias_E = dict(router.named_buffers()).get("e_score_correction_bias")
        if bias_E is not None:
            return choice_margins(logits_TE.float().sigmoid(), bias_E, groups, chosen, experts_TK.shape[-1])
        if groups > 1:
            return None
        scores_TE = logits_TE.float().softmax(-1)
        return choice_margins(scores_TE, torch.zeros_like(scores_TE[0]), 1, 1, experts_TK.shape[-1])

    @torch.no_grad()
    def checkpoint_weights(self, state: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields every weight under its published name, with LoRA merged in; experts are copied, a layer at a time.

        A tied head comes too: some engines ask for it.
        """
        if state is not None:
            state = {name.removeprefix("inner."): tensor for name, tensor in state.items()}
        state = merged(self.inner, state)
        # Where transformers stacks the experts of a layer, its own table of conversions takes them apart again. It
        # needs all experts of a layer at once, and one layer at a time keeps the copies small.
        for _, names in groupby(state, key=_layer):
            yield from revert_weight_conversion(self.inner, {name: state[name] for name in names}).items()

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copies published tensors into the model by transformers' own loader; it takes the memory of a second model.

        Raises ValueError for a tensor that is missing, unknown, doubled or of another shape.
        """
        given = dict(checked(weights, self.files.table, self.files.tied))
        with _quiet():
            fresh = type(self.inner).from_pretrained(
                None, config=self.inner.config, state_dict=given, dtype=self.inner.dtype
            )
        self.inner.load_state_dict(fresh.state_dict())

    def published(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the published name and the shape of every weight."""
        return self.files.published

    def all_published(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the same and the tied tensors, which have no memory of their own and no shape here."""
        return {**self.files.published, **{name: (0,) for name in sorted(self.files.tied)}}

    def core(self) -> nn.Module:
        """Returns the model of transformers."""
        return self.inner


def _layer(name: str) -> str:
    found = LAYER.match(name)
    return found.group(1) if found else name


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides transformers' progress bar while a model is loaded: a run has its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
