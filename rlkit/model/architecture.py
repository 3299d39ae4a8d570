"""What a run asks of a model before any weight of it is in memory. Each kind of model answers for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rlkit.model.base import CausalLM
from rlkit.model.files.sent import Sent
from rlkit.model.size import Size

NO_ADAPTER_BESIDE_EXPERTS = "vLLM's kernels for routed experts do not run with an adapter beside them; set it to merged"
"""What `vllm_adapter_problem` says of a model with routed experts."""


class Architecture(Protocol):
    """The shape of a model; `DeepseekArchitecture` stands for our class, `HfArchitecture` for those of transformers.

    The methods that end in `_problem` return None where all is well. Otherwise they return the end of a sentence, from
    what is wrong to what the user can do about it; the caller knows which of the user's keys the sentence starts with.
    """

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; every token id is below it."""
        ...

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the main model."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        ...

    @property
    def exact_positions(self) -> int:
        """The longest sequence whose result does not depend on the other sequences of its batch, in tokens."""
        ...

    @property
    def num_mtp_modules(self) -> int:
        """Modules for multi-token prediction, which can draft tokens."""
        ...

    def size(self) -> Size:
        """Counts parameters and the numbers of the decoding cache."""
        ...

    def empty_model(self) -> CausalLM:
        """Makes the model on the meta device: names and shapes without memory."""
        ...

    def new_model(self) -> CausalLM:
        """Makes the model with new weights, drawn from torch's global generator."""
        ...

    def check_files(self) -> None:
        """Reads the headers of the weight files; raises UserError if they are not the weights of this model."""
        ...

    def write(self, path: Path, weights: Iterable[tuple[str, Tensor]], dtype: str) -> None:
        """Writes published weights as a checkpoint for transformers and vLLM; it appears whole or not at all.

        `dtype` is one of `rlkit.model.files.folder.DTYPES`. Raises ValueError for weights that are not those of the
        architecture.
        """
        ...

    def sent(self) -> Mapping[str, Sent]:
        """Returns what an engine in high precision is sent at every sync, tensor by tensor."""
        ...

    def vllm_problem(self, *, on_gpu: bool) -> str | None:
        """Says why vLLM cannot run the model."""
        ...

    def vllm_fp8_problem(self) -> str | None:
        """Says why vLLM cannot compute in FP8 what the trainer can (`float8_problem`)."""
        ...

    def vllm_adapter_problem(self) -> str | None:
        """Says why vLLM cannot run the model with an adapter beside its weights."""
        ...

    def vllm_split_problem(self, num_workers: int, *, on_gpu: bool) -> str | None:
        """Says why vLLM cannot divide the model among so many workers."""
        ...

    def vllm_draft_problem(self, num_tokens: int) -> str | None:
        """Says why vLLM cannot draft so many tokens with the model's modules for multi-token prediction."""
        ...

    def sharing_problem(self, ranks: int) -> str | None:
        """Says why so many ranks cannot share out the routed experts."""
        ...

    def stages_problem(self, stages: int) -> str | None:
        """Says why so many ranks of a pipeline cannot share out the layers."""
        ...

    def pieces_problem(self) -> str | None:
        """Says why ZeRO-3 cannot cut the weights into pieces."""
        ...

    def float8_problem(self) -> str | None:
        """Says why the trainer cannot compute in FP8."""
        ...

    def float8_summary(self) -> str:
        """Says which matrices a trainer computes in FP8, and which kinds of weights not."""
        ...

    def balance_problem(self) -> str | None:
        """Says why there are no experts whose load could be balanced."""
        ...

    def bias_problem(self) -> str | None:
        """Says why the routers have no bias that could be moved against the load."""
        ...
