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
        """Counts the tokens of each sample that are in the cache."""
        ...

    def rows(self, index_B: Tensor, room: int) -> Self:
        """Keeps (or repeats) the given samples, in a new cache with room for `room` tokens each."""
        ...


class CausalLM(nn.Module, ABC):
    """A causal language model on packed samples; `DeepseekV3` is ours, `HfModel` runs any of transformers' classes.

    Next-token logits are `hidden(tokens_T) @ lm_head.weight.T`, nothing else: so the trainer can take the log-probs of
    the trained tokens in chunks, and never holds the logits of a whole pack.
    """

    lm_head: nn.Linear
    num_stages = 1
    """How many ranks of a pipeline share out the layers."""

    @abstractmethod
    def hidden(self, tokens_T: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Computes the hidden states after the final norm, [T] -> [T, D].

        `lengths` splits [T] into samples that do not see each other; None means one sample. Raises ValueError if they
        do not sum to T.
        """

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DecodingCache]:
        """Runs the prompts once; returns the logits of each one's next token [B, V], and their cache.

        Raises ValueError if a prompt is empty.
        """

    @abstractmethod
    def decode_step(self, tokens_B: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Feeds one token per sample; returns the logits of the token after it [B, V], and the cache one token longer.

        The cache is one that this model's own `prefill` made.
        """

    @abstractmethod
    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Runs one sequence; returns every block's output in order, `{"model.layers.0.self_attn": [T, D], ...}`."""

    @abstractmethod
    def recompute(self) -> None:
        """Lets every block keep nothing for backward but its input, from now on: backward runs it again."""

    def head(self) -> nn.Linear:
        """Returns the layer behind the hidden states."""
        return self.lm_head

    def new_layers(self) -> Sequence[nn.Module]:
        """Returns layers that training makes from nothing, so that LoRA trains them as they are; most have none."""
        return ()

    def routers(self) -> Mapping[str, int]:
        """Returns the routers of the whole model by name, also those on other ranks: how many experts each has.

        Only routers that we balance; {} without any.
        """
        return {}

    def mtp_modules(self) -> Sequence[nn.Module]:
        """Returns the modules for multi-token prediction, depth 1 first; most models have none."""
        return ()

    def mtp_hidden(
        self, tokens_T: Tensor, lengths: Sequence[int], hidden_TD: Tensor, *, detached: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields, for each of these modules, the places that it predicts in the pack [M], and its states there [M, D].

        `hidden_TD` is what `hidden` gave. With `detached`, gradients stay in the modules.
        """
        return iter(())

    @abstractmethod
    def checkpoint_weights(self, state: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields every weight under its published name, without gradient, and with LoRA merged in.

        `state` is where the model's tensors are read from, by their names in the model, if they are not in it.
        """

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copies published tensors into the model.

        Raises ValueError if one is missing, unknown, doubled or of another shape.
        """

    @abstractmethod
    def published(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the published name and the shape of every weight."""

    def fp8_names(self) -> frozenset[str]:
        """Returns the published names of the matrices that FP8 may hold; none where nobody has said which."""
        return frozenset()

    @abstractmethod
    def all_published(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the published name and the shape of every weight that the ranks hold together, copies included.

        The order is that of `checkpoint_weights`, up to the order within a layer.
        """

    def holders(self, name: str, num_ranks: int) -> range:
        """Returns which of the ranks hold a weight: all of them, unless they share out experts."""
        return range(num_ranks)

    @abstractmethod
    def core(self) -> nn.Module:
        """Returns the module whose submodules are named as in transformers' class, which is where adapters go."""
