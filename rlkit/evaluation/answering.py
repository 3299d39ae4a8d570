"""From missing samples to stored verdicts: each completion is written down as it comes, and judged beside the others.

What is asked for are keys, a problem and the number of a sample. A key is asked as a prompt of its own, so that its
seed depends on nothing that is drawn with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import replace

from rlkit.engine.base import Engine
from rlkit.evaluation.exams import Exam
from rlkit.evaluation.records import Completion, Key, Record, Verdict, reward_mark
from rlkit.evaluation.suites import Suite
from rlkit.rollout.judging import RewardFn, Verdicts
from rlkit.types import Group, Prompt, Rollout
from rlkit.watch.console import Console


def keys_of(ids: Sequence[str], samples: int) -> list[Key]:
    """Returns the keys of the first samples of some problems."""
    return [(id, number) for id in ids for number in range(samples)]


def not_drawn(record: Record, asked: Sequence[Key]) -> list[Key]:
    """Returns the keys among those asked for that have no completion yet."""
    there = record.completions
    return [key for key in asked if key not in there]


def not_judged(suite: Suite, record: Record, asked: Sequence[Key]) -> list[Completion]:
    """Returns the stored completions that the suite's reward has not judged, or could not because a machine failed."""
    there, judged = record.completions, record.verdicts(reward_mark(suite.reward))
    return [there[key] for key in asked if key in there and (key not in judged or judged[key].redone)]


def draw(
    exam: Exam, record: Record, keys: Sequence[Key], sampler: Engine, judge: RewardFn, life: int
) -> dict[Verdicts, Completion]:
    """Draws what is missing, writes it down and has it judged; returns what is still being judged at the end."""
    posed, mark = {prompt.id: prompt for prompt in exam.prompts}, reward_mark(exam.suite.reward)
    asked = {f"{id}#{number}": (id, number) for id, number in keys}
    prompts = [replace(posed[id], id=name) for name, (id, _) in asked.items()]
    waiting: dict[Verdicts, Completion] = {}
    for group in sampler.generate(prompts, 1, exam.sampling):
        id, number = asked[group.prompt.id]
        [rollout] = group.rollouts
        completion = Completion(
            row=id,
            sample=number,
            settings=exam.fingerprint,
            life=life,
            seed=rollout.seed,
            prompt=group.prompt.text,
            completion=rollout.text,
            tokens=rollout.tokens,
            finish_reason=rollout.finish_reason,
        )
        record.add_completions([completion])
        waiting[judge(as_group(completion, exam.suite))] = completion
        done = [verdicts for verdicts in waiting if verdicts.done()]
        record.add_verdicts([as_verdict(waiting.pop(verdicts), verdicts, mark) for verdicts in done])
    return waiting


def await_verdicts(waiting: dict[Verdicts, Completion], suite: Suite, record: Record, console: Console) -> None:
    """Writes verdicts down as they come."""
    mark = reward_mark(suite.reward)
    with console.bar("judging", len(waiting), "completions") as bar:
        for verdicts in as_completed(waiting):
            record.add_verdicts([as_verdict(waiting[verdicts], verdicts, mark)])
            bar.advance()


def as_group(line: Completion, suite: Suite) -> Group:
    """Makes of a stored completion what a reward judges; the columns of its row come from the suite's data."""
    prompt = Prompt(id=f"{line.row}#{line.sample}", tokens=(), text=line.prompt, meta=suite.row(line.row).meta)
    rollout = Rollout(
        tokens=line.tokens,
        logprobs=(),
        text=line.completion,
        finish_reason=line.finish_reason,
        weight_version=0,
        seed=line.seed,
    )
    return Group(prompt=prompt, rollouts=(rollout,))


def as_verdict(line: Completion, verdicts: Verdicts, mark: str) -> Verdict:
    """Makes a line of the one score of a completion, by the reward of this mark; raises what the reward raised."""
    [score] = verdicts.result()
    return Verdict(
        row=line.row,
        sample=line.sample,
        reward=mark,
        value=score.value,
        correct=score.correct,
        reason=score.reason,
        parts=dict(score.parts),
        seconds=score.seconds,
    )
