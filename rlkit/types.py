"""The values that flow through a step, from a prompt to the numbers a person reads.

Shape suffixes, used everywhere in rlkit:
    P  prompts in a step          G  rollouts in a group       N  samples in a batch
    T  tokens laid end to end     D  hidden width              V  vocabulary
    E  experts                    K  experts chosen per token  H  attention heads
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

FinishReason = Literal["stop", "length"]
Numbers = Mapping[str, float]
"""What was measured, under the names that the step line, metrics.jsonl and the report show."""
Weights = Iterable[tuple[str, Tensor]]
"""Named tensors under their checkpoint names (`model.layers.0.mlp.down_proj.weight`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question as the model sees it, with the dataset row it came from.

    Example: `Prompt(id="chain_sum/17", tokens=(0, 5, 6), text="<|user|>3 + 4 =<|assistant|>", meta={"answer": "7"})`
    """

    id: str
    """Stable across runs: the order of data and every random seed derive from it."""
    tokens: tuple[int, ...]
    """Token ids after the chat template, up to where the model starts to write."""
    text: str
    meta: Mapping[str, Any]
    """The dataset row; a reward reads its columns from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """Tokens to imitate: the model reads all of them and learns those inside the spans.

    Example: two turns of an assistant,
    `Demonstration(id="chat/7", tokens=(0, 5, 8, 2, 6, 9, 2), trained=((2, 4), (5, 7)))`
    """

    id: str
    """Of the dataset row that it was made of; "" where nobody has named it."""
    tokens: tuple[int, ...]
    trained: tuple[tuple[int, int], ...]
    """First and end of each run of trained tokens, in order; never the first token, before which there is nothing."""

    @staticmethod
    def of(prompt: Sequence[int], completion: Sequence[int], id: str = "") -> Demonstration:
        """Shows a completion after a prompt, of which nothing is learned."""
        end = len(prompt) + len(completion)
        return Demonstration(id=id, tokens=(*prompt, *completion), trained=((len(prompt), end),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn.

    Example: `Sampling(temperature=1.0, top_p=1.0, max_new_tokens=64, seed=7)`
    """

    temperature: float
    """0 means greedy."""
    top_p: float
    max_new_tokens: int
    seed: int
    """Each rollout's own seed is derived from this one, the prompt's id and its place in the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion, with everything needed to audit and to train on it.

    Example: `Rollout(tokens=(12, 3), logprobs=(-0.1, -0.02), text="7", finish_reason="stop", weight_version=4, seed=9)`
    """

    tokens: tuple[int, ...]
    """Completion ids as the engine sampled them, the end token included when it was sampled; never re-tokenised."""
    logprobs: tuple[float, ...]
    """log p of each token under the distribution it was drawn from (temperature applied), in nats."""
    text: str
    """The decoded completion, special tokens such as the end token left out."""
    finish_reason: FinishReason
    weight_version: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All rollouts of one prompt: they are compared with each other."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a reward said of one rollout; `value=None` means no verdict, and the rollout is left out of its group.

    Example: `Score(value=1.0, reason="correct", seconds=0.002)`
    """

    value: float | None
    reason: str
    seconds: float = 0.0
    """How long the reward worked on it; for a function that judges a whole batch, on the batch."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the value is made of; of a composite its first reward comes first."""
    logs: Mapping[str, float] = field(default_factory=dict)
    """Other numbers that the reward wants to see in the metrics."""

    @property
    def correct(self) -> bool:
        """Whether the problem is solved, whatever else the value counts.

        A reason "correct" or "wrong" says so; without one the first part does, or where there are none the value, by
        being 1 or more.
        """
        if self.value is None or self.kind in ("correct", "wrong"):
            return self.value is not None and self.kind == "correct"
        return next(iter(self.parts.values()), self.value) >= 1

    @property
    def kind(self) -> str:
        """The reason up to its first colon ("wrong: got 8" is a "wrong"); "no_verdict" for None without a reason."""
        kind = self.reason.partition(":")[0].strip()[:40]
        return kind or ("no_verdict" if self.value is None else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group whose rollouts have been judged; `scores` has one entry per rollout."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Samples laid end to end in one row of T tokens; samples never see each other.

    Example: two samples of 3 and 2 tokens, the last token of each trained:
    `Pack(tokens_T=[5, 6, 7, 5, 8], lengths=(3, 2), weights_T=[0, 0, .5, 0, .5])`
    """

    together: ClassVar[int] = 1
    """How many samples in a row belong together: packing and dealing never part them."""

    tokens_T: Tensor
    lengths: tuple[int, ...]
    """Tokens of each sample; they sum to T."""
    weights_T: Tensor
    """Share of each token in the batch's loss: 0 on prompt tokens, summing to 1 over the whole batch (all packs, all
    ranks), so that splitting a batch cannot change its gradient."""
    ids: tuple[str, ...] = ()
    """The prompt of each sample (`Prompt.id`), for people who look at a batch; () where nobody has named them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPack(Pack):
    """A pack of rollouts; every tensor is aligned with `tokens_T` and zero on prompt tokens."""

    old_logprobs_T: Tensor
    """log p under the policy that sampled the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaughtPack(SampledPack):
    """A pack of the student's rollouts, with what its teacher says of them."""

    teacher_logprobs_T: Tensor
    """log p of the same tokens under the teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPack(SampledPack):
    """A pack with what GRPO needs."""

    advantages_T: Tensor
    ref_logprobs_T: Tensor | None = None
    """log p under the reference policy. A trainer that keeps a reference fills it in; else it stays absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPack(Pack):
    """A pack of preferences: every chosen sample is followed by its rejected one.

    `weights_T` is 0 but on the last token of each sample, where the score is read; the two of a pair share its weight.
    """

    together: ClassVar[int] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPack(Pack):
    """A pack of samples with a label each; `weights_T` is 0 but on the last token of each, where the score is read."""

    labels_T: Tensor
    """How good the sample is, 0 to 1, on its last token; 0 elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The packs of one optimiser step."""

    packs: tuple[Pack, ...]
    temperature: float
    """Temperature the tokens were sampled at; log-probs of the batch are taken at the same one (1 in SFT)."""
    num_samples: int
    num_tokens: int
    """Tokens in all packs, prompts included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a story yields after each step, when engine, trainer and reference are consistent.

    Example: `Step(stage="grpo", step=7, numbers={"reward": 0.5, "kl": 1e-4}, weight_version=7)`
    """

    stage: str
    """The name under which a recipe runs this story: it heads the step's line, its metrics and its checkpoints."""
    step: int
    numbers: Numbers
    weight_version: int | None
    """The version of the weights that the engine holds now; None if the newest ones were not sent to it."""
    cursors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Where every streamed data set stands after the step; a checkpoint keeps it."""
