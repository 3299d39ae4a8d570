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
from rlkit.engine.base import completion_text, rollout_seed
from rlkit.engine.draws import distribution, draw, invert, uniforms
from rlkit.engine.examination import Examination
from rlkit.engine.speculative import accept
from rlkit.engine.whole import WholeLoads
from rlkit.model import DeepseekV3, drafting
from rlkit.model.base import CausalLM
from rlkit.model.files.sent import Sent, checked_sent, fingerprints
from rlkit.types import Group, Prompt, Rollout, Sampling, Weights
from rlkit.watch.progress import Progress, silent

COMPACT_BELOW = 0.75
"""Finished samples leave the batch once less than this share is running: each time the cache is copied."""


@dataclass(slots=True, kw_only=True)
class _Draft:
    """Holds a rollout while it is being written."""

    prompt: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    def ends(self, sampling: Sampling) -> bool:
        """Says whether it has its end token, or as many tokens as it may have."""
        return self.stopped or len(self.tokens) == sampling.max_new_tokens


class TorchEngine:
    """Samples as an `Engine` does, with its own copy of a model.

    Every rollout has its own stream of random numbers, so its tokens do not depend on what else is in the batch,
    save where float noise moves a probability across a draw.
    """

    def __init__(
        self,
        model: CausalLM,
        eos_token_id: int | Collection[int],
        decode: Callable[[Sequence[int]], str],
        max_batch: int = 256,
        speculative_tokens: int = 0,
        expected: Mapping[str, Sent] | None = None,
        progress: Progress = silent,
    ) -> None:
        """`eos_token_id` is one id or several; `decode` turns the ids of a completion into text.

        With `speculative_tokens` the model's first MTP module drafts so many tokens for each pass of the model.
        `expected` is what every load must bring, tensor by tensor; None leaves it to the model what it takes.
        Raises ValueError if `max_batch` is not positive, or if tokens are to be drafted and there is no such module.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: give at least 1")
        if speculative_tokens and not model.mtp_modules():
            raise ValueError(f"speculative_tokens={speculative_tokens}: the model has no MTP module; give 0")
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.end_tokens = frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
        self.decode = decode
        self.max_batch = max_batch
        self.speculative_tokens = speculative_tokens
        self.whole = WholeLoads()
        self._progress = progress
        self._finished = 0
        self._drafts = (0, 0)
        self._expected = expected

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        """Draws `n` completions for each prompt; a group comes as soon as its last completion is there.

        Raises HalfLoadedError, as `logprobs` and `trace` do, after a load that broke off.
        """
        self.whole.check()
        drafts = [
            _Draft(prompt=i, seed=rollout_seed(sampling.seed, prompt.id, j))
            for i, prompt in enumerate(prompts)
            for j in range(n)
        ]
        self._finished, self._drafts = 0, (0, 0)
        write = self._write_drafted if self.speculative_tokens else self._write
        # A wave holds whole groups where it can, so that each prompt is run once.
        wave = self.max_batch - self.max_batch % n if n <= self.max_batch else self.max_batch
        missing = [n] * len(prompts)
        with self._progress("sampling", len(drafts), "rollouts") as bar:
            for start in range(0, len(drafts), wave):
                for i in write(prompts, drafts[start : start + wave], sampling):
                    bar.set(self._finished)
                    missing[i] -= 1
                    if not missing[i]:
                        rollouts = tuple(self._finish(draft) for draft in drafts[i * n : (i + 1) * n])
                        yield Group(prompt=prompts[i], rollouts=rollouts)

    def finished(self) -> int:
        """Counts the rollouts that the running `generate` has finished; another thread may ask."""
        return self._finished

    def drafts(self) -> tuple[int, int]:
        """Counts the tokens that the last `generate` drafted, and those it accepted; (0, 0) if it does not draft."""
        return self._drafts

    def load(self, weights: Weights, version: int) -> None:
        """Replaces all weights; rollouts made from now on carry `version`.

        Raises ValueError if they do not fit; after any error the engine is unusable until a whole load.
        """
        with self.whole.loading(version):
            self.model.load_weights(weights if self._expected is None else checked_sent(weights, self._expected))

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Computes log p(token_t | tokens before t) at temperature 1, for t = 1..len-1 of each sequence, in nats."""
        self.whole.check()
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
        """Runs one sequence and returns the output [T, D] of every block under its name, in order."""
        self.whole.check()
        return self.model.trace(tokens)

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        """Fingerprints its weights; its products are torch's own, which nobody has to repeat."""
        self.whole.check()
        return Examination(
            prints=fingerprints(self.model.checkpoint_weights()),
            unused=frozenset(),
            products={},
            chosen={},
            quantises_activations=False,
        )

    def replicas(self) -> tuple[TorchEngine]:
        """Returns this engine: there is one copy of the model."""
        return (self,)

    @torch.no_grad()
    def _write(self, prompts: Sequence[Prompt], drafts: Sequence[_Draft], sampling: Sampling) -> Iterator[int]:
        """Runs one batch of drafts to their ends; yields the prompt of each as it ends."""
        used, index_B = _prompts_of(drafts)
        logits_BV, cache = self.model.prefill([prompts[i].tokens for i in used])
        longest = max(len(prompts[i].tokens) for i in used)
        cache, logits_BV = cache.rows(index_B, longest + sampling.max_new_tokens), logits_BV.index_select(0, index_B)
        # All random numbers of a rollout are drawn at once from its own seed, so that they do not depend on which other
        # rollouts share the batch, nor on when those leave it.
        uniforms_BT = torch.stack([uniforms(draft.seed, sampling.max_new_tokens) for draft in drafts])
        batch, rows_B = list(drafts), torch.arange(len(drafts))
        for step in range(sampling.max_new_tokens):
            tokens_B, logprobs_B = draw(logits_BV, uniforms_BT[rows_B, step], sampling)
            for draft, token, logprob in zip(batch, tokens_B.tolist(), logprobs_B.tolist(), strict=True):
                if self._append(draft, [token], [logprob], sampling):
                    yield draft.prompt
            running = [i for i, draft in enumerate(batch) if not draft.stopped]
            if not running or step == sampling.max_new_tokens - 1:
                return
            if len(running) <= COMPACT_BELOW * len(batch):
                # `rows_B` remembers which random numbers belong to whom, since places in the batch move up.
                keep = torch.tensor(running)
                batch, rows_B, tokens_B = [batch[i] for i in running], rows_B[keep], tokens_B[keep]
                room = int(cache.lengths_B[keep].max()) + sampling.max_new_tokens - step
                cache = cache.rows(keep, room)
            logits_BV, cache = self.model.decode_step(tokens_B, cache)

    @torch.no_grad()
    def _write_drafted(self, prompts: Sequence[Prompt], drafts: Sequence[_Draft], sampling: Sampling) -> Iterator[int]:
        """Writes as `_write` does, but by drafts: each pass of the model yields 1 to 1 + speculative_tokens tokens.

        Place i of a rollout has three random numbers of its own: to draft it, to accept the draft, to draw it anew.
        """
        extra, limit = self.speculative_tokens, sampling.max_new_tokens
        used, index_B = _prompts_of(drafts)
        logits_BV, state = drafting.begin(self._drafts_itself(), [prompts[i].tokens for i in used])
        # The last pass may overshoot the limit, and a sample that has ended is still fed until it leaves the batch.
        room = max(len(prompts[i].tokens) for i in used) + limit + 2 * extra
        state, batch, rows_B = state.rows(index_B, room), list(drafts), torch.arange(len(drafts))
        uniforms_BT3 = torch.stack([uniforms(draft.seed, limit + extra + 1, 3) for draft in drafts])
        newest_B, logprobs_B = draw(logits_BV.index_select(0, index_B), uniforms_BT3[:, 0, 2], sampling)
        for draft, token, logprob in zip(batch, newest_B.tolist(), logprobs_B.tolist(), strict=True):
            if self._append(draft, [token], [logprob], sampling):
                yield draft.prompt
        while running := [i for i, draft in enumerate(batch) if not draft.ends(sampling)]:
            if len(running) <= COMPACT_BELOW * len(batch):
                keep = torch.tensor(running)
                batch, rows_B, newest_B = [batch[i] for i in running], rows_B[keep], newest_B[keep]
                left = limit - min(len(draft.tokens) for draft in batch)
                state = state.rows(keep, int(state.cache.lengths_B[keep].max()) + left + 1 + 2 * extra)
            places_B = torch.tensor([len(draft.tokens) for draft in batch])
            own_BM3 = uniforms_BT3[rows_B.unsqueeze(1), places_B.unsqueeze(1) + torch.arange(extra + 1)]
            tokens_BM, logprobs_BM, accepted_B, keep_first = self._round(newest_B, state, own_BM3, sampling)
            # A sample that has ended is still fed with the others but keeps nothing of it: its caches do not move.
            going_B = torch.tensor([not draft.ends(sampling) for draft in batch])
            state = keep_first(torch.where(going_B, accepted_B + 1, 0))
            newest_B = tokens_BM.gather(1, accepted_B.unsqueeze(1)).squeeze(1)
            found = zip(batch, tokens_BM.tolist(), logprobs_BM.tolist(), accepted_B.tolist(), strict=True)
            for draft, tokens, logprobs, accepted in found:
                going, before = not draft.ends(sampling), len(draft.tokens)
                ended = self._append(draft, tokens[: accepted + 1], logprobs[: accepted + 1], sampling)
                if going:  # what lies behind the end of a rollout counts neither way
                    proposed = min(extra, len(draft.tokens) - before if draft.stopped else limit - before)
                    written = min(accepted, len(draft.tokens) - before)
                    self._drafts = (self._drafts[0] + proposed, self._drafts[1] + written)
                if ended:
                    yield draft.prompt

    def _round(
        self, newest_B: Tensor, state: drafting.Speculation, own_BM3: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], drafting.Speculation]]:
        """Drafts and checks; returns tokens [B, M] and their log-probs, of which the first 1 + accepted [B] count."""
        draft_probs: list[Tensor] = []

        def pick(i: int, logits_BV: Tensor) -> Tensor:
            draft_probs.append(distribution(logits_BV, sampling)[0])
            return invert(draft_probs[-1], own_BM3[:, i, 0])

        drafts_BN = drafting.propose(self._drafts_itself(), newest_B, state, self.speculative_tokens, pick)
        logits_BMV, keep_first = drafting.check(self._drafts_itself(), newest_B, drafts_BN, state)
        probs_BMV, logprobs_BMV = distribution(logits_BMV, sampling)
        accepted_B, next_B = accept(drafts_BN, torch.stack(draft_probs, dim=1), probs_BMV, own_BM3[:, :, 1:])
        # Each row is the accepted drafts, then the token drawn where the first draft fell; what stands behind is void.
        tokens_BM = torch.cat([drafts_BN, next_B.unsqueeze(1)], dim=1)
        tokens_BM = tokens_BM.scatter(1, accepted_B.unsqueeze(1), next_B.unsqueeze(1))
        return tokens_BM, logprobs_BMV.gather(2, tokens_BM.unsqueeze(2)).squeeze(2), accepted_B, keep_first

    def _drafts_itself(self) -> DeepseekV3:
        assert isinstance(self.model, DeepseekV3), "no other model has MTP modules"
        return self.model

    def _append(self, draft: _Draft, tokens: Sequence[int], logprobs: Sequence[float], sampling: Sampling) -> bool:
        """Writes tokens behind a rollout up to where it ends; returns True if it ended with one of them."""
        if draft.ends(sampling):
            return False
        for token, logprob in zip(tokens, logprobs, strict=True):
            draft.tokens.append(token)
            draft.logprobs.append(logprob)
            draft.stopped = token in self.end_tokens
            if draft.ends(sampling):
                self._finished += 1
                return True
        return False

    def _finish(self, draft: _Draft) -> Rollout:
        return Rollout(
            tokens=tuple(draft.tokens),
            logprobs=tuple(draft.logprobs),
            text=completion_text(draft.tokens, self.end_tokens, self.decode),
            finish_reason="stop" if draft.stopped else "length",
            weight_version=self.whole.version,
            seed=draft.seed,
        )


def _prompts_of(drafts: Sequence[_Draft]) -> tuple[list[int], Tensor]:
    """Returns the prompts that drafts belong to, each once, and the place of each draft's own among them."""
    used = sorted({draft.prompt for draft in drafts})
    place = {prompt: i for i, prompt in enumerate(used)}
    return used, torch.tensor([place[draft.prompt] for draft in drafts])
