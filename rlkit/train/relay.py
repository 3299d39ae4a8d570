"""A model whose layers lie on several ranks, run forward without gradients: activations go from rank to rank.

Log-probs, the reference and traces need no schedule: every pack goes through the first halves of all ranks, and when
all packs are at the last rank, back through the second ones (`rlkit.model.stages`). All ranks of a pipeline call the
same methods with the same packs, and all get the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from rlkit.algo.losses import NO_MTP, MtpTerm
from rlkit.model.deepseek import DeepseekV3
from rlkit.model.ragged import lay_out_pack
from rlkit.model.trace import recorded_blocks
from rlkit.train.policy import Policy, PolicyOutput
from rlkit.types import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The ranks that hold one copy of the model together, the embedding's first."""

    ranks: tuple[int, ...]
    group: Any
    """These ranks, as torch.distributed knows them."""


def join_pipeline(num_stages: int) -> Pipeline:
    """Returns the pipeline of this rank: ranks 0 .. W / P - 1 are stage 0 of W / P pipelines, and so on.

    All ranks call it.
    """
    own, num_pipelines = distributed.get_rank(), distributed.get_world_size() // num_stages
    pipelines = [tuple(range(first, distributed.get_world_size(), num_pipelines)) for first in range(num_pipelines)]
    groups = [distributed.new_group(list(members)) for members in pipelines]
    return Pipeline(ranks=pipelines[own % num_pipelines], group=groups[own % num_pipelines])


class RelayedPolicy:
    """What `rlkit.train.policy.Policy` is for a whole model."""

    def __init__(self, model: DeepseekV3, pipeline: Pipeline) -> None:
        self.model, self.pipeline = model, pipeline
        self.chunks = model.stage.chunks(model.config.num_hidden_layers)
        self.device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype

    def __call__(self, pack: Pack, temperature: float, mtp: MtpTerm = NO_MTP) -> PolicyOutput:
        """Returns log-probs and entropies of one pack."""
        [(logprobs_T, entropy_T)] = self.outputs([pack], temperature)
        return PolicyOutput(logprobs_T=logprobs_T, entropy_T=entropy_T, mtp_loss=None)

    @torch.no_grad()
    def outputs(self, packs: Sequence[Pack], temperature: float) -> list[tuple[Tensor, Tensor]]:
        """Returns log-probs and entropies of each pack, [T] each."""
        stage, policy = self.model.stage, Policy(self.model)
        found = [torch.zeros(2, len(pack.tokens_T), device=self.device) for pack in packs]

        def finish(number: int, hidden_TD: Tensor) -> None:
            output = policy.of_hidden(hidden_TD, packs[number], temperature)
            found[number] = torch.stack([output.logprobs_T, output.entropy_T])

        self._run(packs, finish)
        for both_2T in found:
            distributed.broadcast(both_2T, src=self.pipeline.ranks[0], group=self.pipeline.group)
        assert stage.size == len(self.pipeline.ranks)
        return [(both_2T[0], both_2T[1]) for both_2T in found]

    def trace(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        """Runs one sequence; returns what `rlkit.model.trace` does of the whole model, on every rank."""
        tokens_T = torch.tensor(tokens, device=self.device)
        pack = Pack(tokens_T=tokens_T, lengths=(len(tokens),), weights_T=torch.zeros(len(tokens), device=self.device))
        with torch.no_grad(), recorded_blocks(self.model.model) as outputs:
            self._run([pack], lambda _number, _hidden_TD: None)
        return {name: tensor.to(self.device) for name, tensor in self.joined(outputs).items()}

    def joined(self, here: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns what the stages have found in their layers, in the order of the layers, on the CPU of every rank."""
        parts: list[Any] = [None] * self.model.stage.size
        distributed.all_gather_object(
            parts, {name: tensor.cpu() for name, tensor in here.items()}, group=self.pipeline.group
        )
        # Of each layer the names are in the order in which they ran, on the one rank that has it.
        found = {name: tensor for part in parts for name, tensor in part.items()}
        return {name: found[name] for name in sorted(found, key=_layer)}

    def _run(self, packs: Sequence[Pack], finish: Callable[[int, Tensor], None]) -> None:
        """Hands the hidden states of each pack to `finish`, on the first rank."""
        stage, ranks = self.model.stage, self.pipeline.ranks
        last = stage.size - 1
        turned: list[Tensor] = []
        for pack in packs:
            x_TD = None if stage.first else self._received(pack, ranks[stage.rank - 1])
            x_TD = self._chunk(0, x_TD, pack)
            if stage.rank == last:
                turned.append(x_TD)
            else:
                distributed.send(x_TD, ranks[stage.rank + 1])
        for number, pack in enumerate(packs):
            x_TD = turned[number] if stage.rank == last else self._received(pack, ranks[stage.rank + 1])
            x_TD = self._chunk(1, x_TD, pack)
            if stage.first:
                finish(number, x_TD)
            else:
                distributed.send(x_TD, ranks[stage.rank - 1])

    def _chunk(self, way: int, x_TD: Tensor | None, pack: Pack) -> Tensor:
        return self.model.model.run(self.chunks[way], x_TD, pack.tokens_T, lay_out_pack(pack.tokens_T, pack.lengths))

    def _received(self, pack: Pack, source: int) -> Tensor:
        shape = (len(pack.tokens_T), self.model.config.hidden_size)
        x_TD = torch.empty(shape, dtype=self._dtype, device=self.device)
        distributed.recv(x_TD, source)
        return x_TD


def _layer(name: str) -> int:
    """ "model.layers.3.mlp" -> 3; the final norm comes last."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), 10**9)
