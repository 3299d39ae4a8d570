"""Sampling in this process with plain torch: for tests, for laptops, and where vLLM does not run.

What is not covered: several devices, continuous batching (a wave of rollouts runs until its last one ends).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlkit.algo.logprobs import chunked_logprobs
from rlkit.engine.base import rollout_seed
from rlkit.model.base import CausalLM
from rlkit.types import Group, Prompt, Rollout, Sampling, Weights

COMPACT_BELOW = 0.75
"""Finished samples leave the batch once less than this share is still running: each copy of the cache costs time."""


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A rollout while it is being written."""

    prompt: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False


class TorchEngine:
    """An `Engine` around its own copy of a model.

    Every rollout has its own stream of random numbers, so its tokens do not depend on what else is in the batch,
    save where float noise moves a probability across a draw.
    """

    def __init__(
        self,
        model: CausalLM,
        eos_token_id: int | Collection[int],
        decode: Callable[[Sequence[int]], str],
        max_batch: int = 256,
    ) -> None:
        """`eos_token_id` is one id or several; `decode` turns completion ids (end token left out) into text.

        ValueError if `max_batch` is not positive.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: give at least 1")
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.end_tokens = frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
        self.decode = decode
        self.max_batch = max_batch
        self.version = 0
        self._finished = 0

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        """Draw `n` completions for each prompt; a group comes as soon as its last completion is there."""
        drafts = [
            _Draft(prompt=i, seed=rollout_seed(sampling.seed, prompt.id, j))
            for i, prompt in enumerate(prompts)
            for j in range(n)
        ]
        self._finished = 0
        # A wave holds whole groups where it can, so that each prompt is run once.
        wave = self.max_batch - self.max_batch % n if n <= self.max_batch else self.max_batch
        missing = [n] * len(prompts)
        for start in range(0, len(drafts), wave):
            for i in self._write(prompts, drafts[start : start + wave], sampling):
                missing[i] -= 1
                if not missing[i]:
                    rollouts = tuple(self._finish(draft) for draft in drafts[i * n : (i + 1) * n])
                    yield Group(prompt=prompts[i], rollouts=rollouts)

    def finished(self) -> int:
        """Rollouts that the running `generate` has finished; another thread may ask."""
        return self._finished

    def load(self, weights: Weights, version: int) -> None:
        """Replace all weights; rollouts made from now on carry `version`. ValueError if they do not fit the model."""
        self.model.load_weights(weights)
        self.version = version

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """log p(token_t | tokens before t) at temperature 1, for t = 1..len-1 of each sequence, in nats."""
        found: list[list[float]] = []
        for start in range(0, len(sequences), self.max_batch):
            part = sequences[start : start + self.max_batch]
            lengths = [len(sequence) for sequence in part]
            tokens_T = torch.tensor([token for sequence in part for token in sequence])
            hidden_TD = self.model.hidden(tokens_T, lengths)
            # The last token of each sample predicts nothing of its own: its row is computed and dropped.
            next_T, _ = chunked_logprobs(hidden_TD, self.model.lm_head.weight, tokens_T.roll(-1))
            found += [row[:-1].tolist() for row in next_T.split(lengths)]
        return found

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Run one sequence and return the output [T, D] of every block under its name, in order."""
        return self.model.trace(tokens)

    @torch.no_grad()
    def _write(self, prompts: Sequence[Prompt], drafts: Sequence[_Draft], sampling: Sampling) -> Iterator[int]:
        """Run one batch of drafts to their ends; yields the prompt of each as it ends."""
        used = sorted({draft.prompt for draft in drafts})
        logits_BV, cache = self.model.prefill([prompts[i].tokens for i in used])
        row = {prompt: r for r, prompt in enumerate(used)}
        index_B = torch.tensor([row[draft.prompt] for draft in drafts])
        longest = max(len(prompts[i].tokens) for i in used)
        cache, logits_BV = cache.rows(index_B, longest + sampling.max_new_tokens), logits_BV.index_select(0, index_B)
        uniforms_BT = torch.stack([_uniforms(draft.seed, sampling.max_new_tokens) for draft in drafts])
        batch, rows_B = list(drafts), torch.arange(len(drafts))
        for step in range(sampling.max_new_tokens):
            tokens_B, logprobs_B = draw(logits_BV, uniforms_BT[rows_B, step], sampling)
            for draft, token, logprob in zip(batch, tokens_B.tolist(), logprobs_B.tolist(), strict=True):
                if not draft.stopped:
                    draft.tokens.append(token)
                    draft.logprobs.append(logprob)
                    draft.stopped = token in self.end_tokens
                    if draft.stopped or step == sampling.max_new_tokens - 1:
                        self._finished += 1
                        yield draft.prompt
            running = [i for i, draft in enumerate(batch) if not draft.stopped]
            if not running or step == sampling.max_new_tokens - 1:
                return
            if len(running) <= COMPACT_BELOW * len(batch):
                keep = torch.tensor(running)
                batch, rows_B, tokens_B = [batch[i] for i in running], rows_B[keep], tokens_B[keep]
                room = int(cache.lengths_B[keep].max()) + sampling.max_new_tokens - step
                cache = cache.rows(keep, room)
            logits_BV, cache = self.model.decode_step(tokens_B, cache)

    def _finish(self, draft: _Draft) -> Rollout:
        text = draft.tokens[:-1] if draft.stopped else draft.tokens
        return Rollout(
            tokens=tuple(draft.tokens),
            logprobs=tuple(draft.logprobs),
            text=self.decode(text),
            finish_reason="stop" if draft.stopped else "length",
            weight_version=self.version,
            seed=draft.seed,
        )


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token per row, and its log-prob in nats under the distribution it was drawn from.

    token = first v with F(v) > u, F the cumulative softmax(logits / temperature). Temperature 0 takes the most likely
    token and reports its log-prob at temperature 1. With top_p < 1 both are of the distribution cut to the nucleus.
    """
    if sampling.temperature == 0:
        tokens_B = logits_BV.argmax(-1)
        logprobs_BV = logits_BV.float().log_softmax(-1)
    else:
        logprobs_BV = (logits_BV.float() / sampling.temperature).log_softmax(-1)
        if sampling.top_p < 1:
            logprobs_BV = logprobs_BV.masked_fill(_outside_nucleus(logprobs_BV, sampling.top_p), float("-inf"))
            logprobs_BV = logprobs_BV.log_softmax(-1)
        cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
        target_B1 = uniforms_B.unsqueeze(1) * cumulative_BV[:, -1:]
        # u close to 1 may round up to the total; the last token is then the inverse.
        found_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)
        tokens_B = found_B.clamp_(max=logits_BV.shape[1] - 1)
    return tokens_B, logprobs_BV.gather(1, tokens_B.unsqueeze(1)).squeeze(1)


def _outside_nucleus(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """True for tokens outside the smallest set of likely tokens whose mass reaches `top_p` (arXiv:1904.09751, 3.1)."""
    sorted_BV, order_BV = logprobs_BV.exp().sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    return torch.empty_like(before_BV, dtype=torch.bool).scatter_(1, order_BV, before_BV >= top_p)


def _uniforms(seed: int, count: int) -> Tensor:
    """The random numbers of one rollout, one per token, in [0, 1)."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
