"""What trainer, engine and parity gate ask of a model, whoever wrote it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

from torch import Tensor, nn


class DecodingCache(Protocol):
    """What a model remembers of B samples while they are being written; it belongs to one run of decoding."""

    @property
    def lengths_B(self) -> Tensor:
        """Tokens of each sample that are in the cache."""
        ...

    def rows(self, index_B: Tensor, room: int) -> Self:
        """Keep (or repeat) the given samples, in a new cache with room for `room` tokens each."""
        ...


class CausalLM(nn.Module, ABC):
    """A causal language model on packed samples; `DeepseekV3` is ours, `HfModel` any of transformers' classes.

    Next-token logits are `hidden(tokens_T) @ lm_head.weight.T`, nothing else.
    """

    lm_head: nn.Linear

    @abstractmethod
    def hidden(self, tokens_T: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Hidden states after the final norm, [T] -> [T, D].

        `lengths` splits [T] into samples that do not see each other; None means one sample. ValueError if they do
        not sum to T.
        """

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DecodingCache]:
        """Run the prompts once: logits of each one's next token [B, V], and their cache. ValueError if one is empty."""

    @abstractmethod
    def decode_step(self, tokens_B: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Feed one token per sample: logits of the token after it [B, V], and the cache, which this model's `prefill`
        made, one token longer."""

    @abstractmethod
    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Run one sequence; the output of every block, `{"model.layers.0.self_attn": [T, D], ...}`, in order."""

    def mtp_modules(self) -> Sequence[nn.Module]:
        """The modules for multi-token prediction, depth 1 first; most models have none."""
        return ()

    def mtp_hidden(
        self, tokens_T: Tensor, lengths: Sequence[int], hidden_TD: Tensor, *, detached: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each of these modules: the places that it predicts in the pack [M], and its hidden states there [M, D].

        `hidden_TD` is what `hidden` gave. `detached`: gradients stay in the modules.
        """
        return iter(())

    @abstractmethod
    def checkpoint_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its published name, without gradient; LoRA merged in."""

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy published tensors into the model; ValueError if one is missing, unknown, doubled or of another shape."""

    @abstractmethod
    def published(self) -> Mapping[str, tuple[int, ...]]:
        """Published name and shape of every weight."""

    @abstractmethod
    def core(self) -> nn.Module:
        """The module whose submodules are named as in transformers' class: where adapters go."""
