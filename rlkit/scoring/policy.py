"""The policy as its own judge: questions of a reward process, answered by the run's engine between two samplings.

A reward process cannot reach the engine. Its questions come to the driver, which puts them into the chat template,
waits until the loop has sampled all groups of the step, and lets the engine answer with the weights that sampled them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from rewards import RewardError
from rewards.judge.answer import Answer, Failure
from rewards.judge.ballots import Question
from rewards.judge.policy import DEFAULT_MAX_TOKENS, POLICY, Asked
from rlkit.config import RewardConfig
from rlkit.data.prompts import to_prompts
from rlkit.data.rows import Row
from rlkit.engine.turns import TakingTurns
from rlkit.errors import UserError
from rlkit.types import Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def asks_policy(cfg: RewardConfig) -> bool:
    """Says whether the reward, or one inside it, is a judge with endpoint=policy."""
    return any(table.get("endpoint") == POLICY for table in _tables(cfg.kwargs))


def check_room(cfg: RewardConfig, max_model_len: int) -> None:
    """Raises UserError if the policy's answer as a judge would fill its whole context."""
    for table in _tables(cfg.kwargs):
        max_tokens = table.get("max_tokens", DEFAULT_MAX_TOKENS)
        if table.get("endpoint") == POLICY and max_tokens >= max_model_len:
            raise UserError(
                f"reward.kwargs.max_tokens={max_tokens} leaves no room for the judge's question in "
                f"engine.max_model_len={max_model_len}; lower the first or raise the second"
            )


def answered(policy: PolicyJudge | None, asked: Asked) -> list[Answer | Failure]:
    """Lets the policy answer; raises RewardError where nobody has said how it is reached."""
    if policy is None:
        raise RewardError(
            "judge: endpoint=policy asks the model that the run trains, and this recipe starts its reward without one; "
            "give the address of a server"
        )
    return policy.answers(asked)


class PolicyJudge:
    """The run's engine as whoever answers; calls may come from any thread, and each is a batch of its own."""

    def __init__(self, engine: TakingTurns, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """`max_model_len` bounds a question and its answer together, in tokens."""
        self._engine, self._tokenizer, self._max_model_len = engine, tokenizer, max_model_len

    def answers(self, asked: Asked) -> list[Answer | Failure]:
        """Answers the questions in their order; one that does not fit has no answer."""
        room = self._max_model_len - asked.max_tokens
        found: dict[str, Answer | Failure] = {}
        prompts: list[Prompt] = []
        for question in asked.questions:
            prompt = self._prompt(question, room)
            if isinstance(prompt, Failure):
                found[_id(question)] = prompt
            else:
                prompts.append(prompt)
        # Each answer draws from the seed of its own question, which is in the id of its prompt.
        sampling = Sampling(temperature=asked.temperature, top_p=1.0, max_new_tokens=asked.max_tokens, seed=0)
        for group in self._engine.aside(prompts, sampling) if prompts else ():
            [rollout] = group.rollouts
            whole = rollout.finish_reason == "stop"
            found[group.prompt.id] = Answer(text=rollout.text, whole=whole, version=rollout.weight_version)
        return [found[_id(question)] for question in asked.questions]

    def close(self) -> None:
        """Sends those away who wait for the engine."""
        self._engine.close()

    def _prompt(self, question: Question, room: int) -> Prompt | Failure:
        row = Row(id=_id(question), question=question.text, answer="", solution="", meta={})
        try:
            [prompt] = to_prompts([row], self._tokenizer, "", sys.maxsize)
        except UserError as error:
            return Failure(reason=f"infra: {error}")
        if len(prompt.tokens) > room:
            return Failure(reason=f"infra: {len(prompt.tokens)} tokens asked, engine.max_model_len has room for {room}")
        return prompt


def _id(question: Question) -> str:
    digest = blake2b(question.text.encode(), digest_size=8).hexdigest()
    return f"judge/{digest}/{question.seed}"


def _tables(value: Any) -> list[Mapping[str, Any]]:
    """Returns every table inside a setting, itself included."""
    match value:
        case Mapping():
            return [value, *(table for entry in value.values() for table in _tables(entry))]
        case list() | tuple():
            return [table for entry in value for table in _tables(entry)]
    return []
