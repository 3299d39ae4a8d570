"""The policy judges itself: questions of a reward process reach the engine and come back as verdicts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from rewards import RewardError
from rewards.judge.answer import Answer, Failure
from rewards.judge.ballots import Question
from rewards.judge.policy import Asked
from rlkit.config import RewardConfig
from rlkit.data.tokenizer import train_tokenizer
from rlkit.engine.turns import OverError, TakingTurns
from rlkit.errors import UserError
from rlkit.scoring.policy import PolicyJudge, asks_policy, check_room
from rlkit.scoring.pool import build_reward
from rlkit.types import Group, Prompt, Rollout, Sampling
from tests.engine.test_turns import SAMPLING, Recorder
from tests.scoring.test_pool import group

TOKENIZER = train_tokenizer(["Which is better? A: good B: bad"], 400)
PAIRS = {"endpoint": "policy", "rubric": "{question}? A: {reply_a} B: {reply_b}", "max_tokens": 8}
ONE = {"endpoint": "policy", "rubric": "{question}? {reply}", "form": "score", "max_tokens": 8}


class Speaker(Recorder):
    """An engine that answers what a script says, with version 5 of the weights."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script, self.calls = script, []

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        self.calls.append((list(prompts), n, sampling))
        for prompt in reversed(prompts):  # groups come in any order
            text = self.script(prompt)
            reason = "length" if text.endswith("...") else "stop"
            yield Group(
                prompt=prompt,
                rollouts=(
                    Rollout(tokens=(1,), logprobs=(0.0,), text=text, finish_reason=reason, weight_version=5, seed=0),
                ),
            )


def policy(script: Any, room: int = 2000) -> tuple[PolicyJudge, Speaker]:
    engine = Speaker(script)
    return PolicyJudge(TakingTurns(engine), TOKENIZER, room), engine


def asked(*texts: str, seed: int = 0, max_tokens: int = 8) -> Asked:
    return Asked(questions=tuple(Question(text=t, seed=seed) for t in texts), temperature=0.7, max_tokens=max_tokens)


def config(fn: str = "judge", timeout: float = 30.0, **kwargs: Any) -> RewardConfig:
    return RewardConfig(fn=fn, kwargs=kwargs, workers=1, timeout=timeout)


def test_questions_go_through_the_chat_template_as_one_batch() -> None:
    judge, engine = policy(lambda prompt: "ok" if "first" in prompt.text else "never ends...")
    found = judge.answers(asked("the first", "the second", seed=3))
    assert found == [Answer(text="ok", version=5), Answer(text="never ends...", whole=False, version=5)]
    [(prompts, n, sampling)] = engine.calls
    assert n == 1 and sampling == Sampling(temperature=0.7, top_p=1.0, max_new_tokens=8, seed=0)
    assert prompts[0].text == "<bos><|user|>the first<|assistant|>"
    assert TOKENIZER.decode(list(prompts[0].tokens)) == prompts[0].text
    assert len({prompt.id for prompt in prompts}) == 2


def test_another_vote_draws_from_another_seed_and_the_same_one_from_the_same() -> None:
    judge, engine = policy(lambda prompt: "ok")
    for seed in (0, 1, 0):
        judge.answers(asked("x", seed=seed))
    ids = [prompts[0].id for prompts, _, _ in engine.calls]
    assert ids[0] == ids[2] != ids[1]


def test_a_question_that_does_not_fit_has_no_answer_and_keeps_no_other_from_one() -> None:
    judge, engine = policy(lambda prompt: "ok", room=40)
    long, short = judge.answers(asked("x " * 100, "y"))
    assert isinstance(long, Failure) and "engine.max_model_len has room for 32" in long.reason
    assert short == Answer(text="ok", version=5) and len(engine.calls[0][0]) == 1
    assert isinstance(judge.answers(asked("x " * 100))[0], Failure) and len(engine.calls) == 1


def test_which_rewards_ask_the_policy() -> None:
    nested = {"by": "task", "rewards": {"math": "math", "open": [{"fn": "judge", "kwargs": PAIRS}]}}
    assert asks_policy(config(**PAIRS)) and asks_policy(config("composite", **nested))
    assert not asks_policy(config(endpoint="http://h/v1")) and not asks_policy(config("number"))
    check_room(config("composite", **nested), 9)
    with pytest.raises(UserError, match=r"max_tokens=8 leaves no room .* engine.max_model_len=8"):
        check_room(config("composite", **nested), 8)
    with pytest.raises(UserError, match="max_tokens=1024 leaves"):
        check_room(config(endpoint="policy"), 64)


@pytest.mark.slow
def test_verdicts_of_the_policy_alone_and_in_a_sum() -> None:
    """The process that judges has no engine: the driver answers, in both orders, and says whose weights judged."""

    def script(prompt: Prompt) -> str:
        first = prompt.text.partition("A: ")[2].partition(" B: ")[0]
        second = prompt.text.partition(" B: ")[2].partition("\n")[0]
        return f"<think>hm</think>[[{'A' if len(first) > len(second) else 'B'}]]"

    part = {"fn": "judge", "kwargs": PAIRS}
    for cfg in (config(**PAIRS), config("composite", rewards=[part, {"fn": "format", "weight": 0.5}])):
        judge, engine = policy(script)
        with build_reward(cfg) as reward:
            reward.judged_by(judge)
            found = reward(group("a", "bbb", "cc")).result()
        assert [score.value for score in found] == [0.0, 1.0, 0.5]
        assert [value for score in found for name, value in score.logs.items() if "judge_version" in name] == [5.0] * 3
        assert [len(prompts) for prompts, _, _ in engine.calls] == [6]


@pytest.mark.slow
def test_the_clock_stands_still_while_the_engine_is_busy() -> None:
    """The loop samples for longer than a verdict may take; the process that waits for its answer is not killed."""
    judge, _ = policy(lambda prompt: "[[10]]")
    with build_reward(config(timeout=3.0, **ONE)) as reward:
        sampling = judge._engine.generate([Prompt(id="p", tokens=(1,), text="p", meta={})] * 2, 1, SAMPLING)
        next(iter(sampling))
        reward.judged_by(judge)
        verdicts = reward(group("good"))
        assert not wait([verdicts], timeout=3.5).done
        list(sampling)
        [score] = verdicts.result(60)
    assert (score.value, score.reason) == (1.0, "scored")


@pytest.mark.slow
def test_a_run_that_fails_while_it_samples_ends_although_a_judge_waits() -> None:
    judge, _ = policy(lambda prompt: "[[10]]")
    answers, asks = judge.answers, threading.Event()
    judge.answers = lambda asked: asks.set() or answers(asked)
    sampling = judge._engine.generate([Prompt(id="p", tokens=(1,), text="p", meta={})] * 2, 1, SAMPLING)
    next(iter(sampling))  # and nobody ever asks for the second group
    with build_reward(config(**ONE)) as reward:
        reward.judged_by(judge)
        verdicts = reward(group("good"))
        assert asks.wait(120)
    with pytest.raises(OverError):
        verdicts.result(60)


@pytest.mark.slow
def test_garbage_of_the_policy_is_no_verdict_and_without_one_there_is_an_error(tmp_path: Path) -> None:
    judge, engine = policy(lambda prompt: "7")
    with build_reward(config(**ONE, temperature=1.0)) as reward:
        with pytest.raises(RewardError, match="this recipe starts its reward without one"):
            reward(group("x")).result()
        reward.judged_by(judge)
        [lost] = reward(group("x")).result()
        assert lost.kind == "worker_lost", "the process waited for an answer, and a group must not pass for it"
        [score] = reward(group("good")).result()
    assert (score.value, score.kind) == (None, "no_verdict") and len(engine.calls) == 3
    judge, engine = policy(lambda prompt: "7")
    with build_reward(config(**ONE)) as reward:
        reward.judged_by(judge)
        assert reward(group("good")).result()[0].value is None
    assert len(engine.calls) == 1, "greedy, it would say the same again"
