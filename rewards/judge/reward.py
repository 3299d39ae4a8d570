"""A language model judges completions by a rubric: each alone, or against the others of its group.

    rewards.load("judge", endpoint="http://127.0.0.1:8000/v1", model="tiny", form="score", rubric="... {reply} ...")

The rubric says what is good, and the form how the verdict is written. What cannot be had is no verdict, never a number:
a server that fails ("infra") and an answer that cannot be read ("no_verdict") leave a completion out of its group.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewards.base import Reward, RewardError, Sample
from rewards.judge.answer import Answer, Source
from rewards.judge.ballots import OPPONENTS, Ballot, Opponents, Question, Standing, pairings, tally
from rewards.judge.cache import Cache
from rewards.judge.endpoint import Endpoint
from rewards.judge.policy import DEFAULT_MAX_TOKENS, POLICY, Policy
from rewards.judge.record import Record
from rewards.judge.rubric import ONE, TWO, ask, check_columns, check_places, question_of, read_rubric, texts_of
from rewards.judge.verdict import Form, pairs, score, yes_no

FORMS = ("pairs", "score", "yes_no")
_OURS = ("model", "messages", "seed", "temperature", "max_tokens", "stream", "n")
"""What a question's body has from settings of its own, or what would change how an answer reads."""


class Judge:
    """Values a completion by the verdicts of a model, from 0 to 1; needs a whole group at a time for pairs.

    form="pairs": the share of its comparisons that it wins, a tie counts half (`rewards.judge.ballots`). form="score":
    the mean score, with the scale's ends at 0 and 1. form="yes_no": the share of votes that say yes.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        rubric: str,
        model: str = "",
        form: str = "pairs",
        opponents: str = "circle",
        reference: str = "answer",
        scale: Sequence[float] = (1, 10),
        votes: int = 1,
        temperature: float = 0.0,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        seed: int = 0,
        key_env: str = "",
        extra: Mapping[str, Any] | None = None,
        concurrency: int = 8,
        tries: int = 3,
        timeout: float = 60.0,
        patience: float = 120.0,
        cache: str = "",
    ) -> None:
        """Checks the settings, which docs/judges.md explains; raises RewardError, and asks nobody yet."""
        self.form_name, self.form = form, _form(form, scale)
        self.rubric = read_rubric(rubric)
        check_places(self.rubric, TWO if form == "pairs" else ONE)
        _check_counts(votes=votes, max_tokens=max_tokens, concurrency=concurrency, tries=tries)
        _check_seconds(timeout=timeout, patience=patience)
        if not 0 <= temperature <= 2:
            raise RewardError(f"judge: temperature={temperature!r} must be from 0 to 2")
        if votes > 1 and temperature == 0:
            raise RewardError(
                f"judge: votes={votes} with temperature=0 would hear the same answer {votes} times; set "
                "reward.kwargs.temperature=0.7, or votes=1"
            )
        self.opponents: Opponents = _opponents(opponents)
        self.reference = reference
        self.votes, self.seed, self.tries = votes, seed, tries
        self.cache: Cache | None = None
        if endpoint == POLICY:
            _refuse_for_policy(model=model, key_env=key_env, extra=extra)  # and a cache knows no weights
            self.source: Source = Policy(temperature=temperature, max_tokens=max_tokens)
            self.longest_s = 0.0  # it answers when it has sampled, however long that takes
            self.tries = tries if temperature else 1  # greedy, it says the same again
            return
        self.longest_s = float(patience)
        body = {**_extra(extra), "temperature": temperature, "max_tokens": max_tokens}
        self.source = Endpoint(
            endpoint, model=model, key_env=key_env, body=body, concurrency=concurrency, tries=tries, timeout=timeout
        )
        if cache:
            self.cache = Cache(cache, {"endpoint": self.source.url, "model": model, **body})

    async def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges the samples; those of one prompt are compared with each other. Raises RewardError for a cache that
        cannot be used."""
        deadline = time.monotonic() + self.longest_s * len(samples) if self.longest_s else math.inf
        ballots = self._ballots(samples)
        questions = dict.fromkeys(question for ballot in ballots for question in ballot.questions)
        record = await self._answered(list(questions), deadline)
        return [self._reward(standing, record) for standing in tally(len(samples), ballots, record.readings)]

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raises RewardError for rows without what the rubric or a lone completion needs, and if nobody answers.

        Samples of one prompt are a group, as in a call; they need no reference unless it is their only opponent.
        """
        for index, sample in enumerate(samples):
            check_columns(self.rubric, sample, index)
        for group in self._groups(samples) if self.form_name == "pairs" else ():
            needed = any(other is None for _, other in pairings(len(group), self.opponents))
            if needed and not self._reference(samples[group[0]]):
                meets = "every completion" if self.opponents == "reference" else "one that is alone, as in evaluations,"
                raise RewardError(
                    f"judge: form=pairs with opponents={self.opponents} compares {meets} with the column "
                    f"{self.reference!r}, which sample {group[0]} does not have or which is empty there; set "
                    "reward.kwargs.reference to a column with good answers, or form=score"
                )
        self.source.check()

    def close(self) -> None:
        """Closes the cache."""
        if self.cache is not None:
            self.cache.close()

    def _ballots(self, samples: Sequence[Sample]) -> list[Ballot]:
        """Plans every vote: on each sample alone, or on the pairs among those of one prompt."""
        if self.form_name != "pairs":
            return [
                Ballot(sides=(place,), questions=(self._question(sample, [texts_of(sample)], vote),))
                for place, sample in enumerate(samples)
                for vote in range(self.votes)
            ]
        return [
            self._comparison(samples, group[one], None if other is None else group[other], vote)
            for group in self._groups(samples)
            for one, other in pairings(len(group), self.opponents)
            for vote in range(self.votes)
            if other is not None or self._reference(samples[group[one]])
        ]

    @staticmethod
    def _groups(samples: Sequence[Sample]) -> list[list[int]]:
        """Returns the places of the samples of each prompt."""
        groups: dict[tuple[str, str], list[int]] = {}
        for place, sample in enumerate(samples):
            groups.setdefault((question_of(sample), str(sample.prompt)), []).append(place)
        return list(groups.values())

    def _reference(self, sample: Sample) -> str:
        return str(sample.meta.get(self.reference) or "").strip()

    def _comparison(self, samples: Sequence[Sample], one: int, other: int | None, vote: int) -> Ballot:
        sample = samples[one]
        texts = [texts_of(sample), (self._reference(sample),) * 2 if other is None else texts_of(samples[other])]
        return Ballot(
            sides=(one,) if other is None else (one, other),
            questions=(self._question(sample, texts, vote), self._question(sample, texts[::-1], vote)),
        )

    def _question(self, sample: Sample, texts: Sequence[tuple[str, str]], vote: int) -> Question:
        text = ask(self.rubric, sample.meta, question_of(sample), texts, self.form.ending)
        return Question(text=text, seed=self.seed + vote)

    async def _answered(self, questions: Sequence[Question], deadline: float) -> Record:
        """Asks until every question has an answer with a verdict, or has been asked `tries` times; asks none of those
        again that have one."""
        record = Record()
        if self.cache is not None:
            for question, text in self.cache.find(questions).items():
                record.read(question, Answer(text=text), self.form)
                record.cached.add(question)
        for attempt in range(self.tries):
            left = [question for question in questions if record.may_ask(question)]
            if not left or (attempt and time.monotonic() >= deadline):
                break
            # Another seed: the same one would bring the same answer.
            asked = [replace(question, seed=question.seed + attempt * self.votes) for question in left]
            answers = dict(zip(left, await self.source.answers(asked, deadline), strict=True))
            for question, answer in answers.items():
                record.read(question, answer, self.form)
                record.again[question] = attempt
            if self.cache is not None:
                self.cache.keep(record.readable(answers))
        return record

    def _reward(self, standing: Standing, record: Record) -> Reward:
        if not standing.questions:
            return Reward(None, f"no_verdict: nothing to compare with, column {self.reference!r} is empty")
        logs = record.logs(standing.questions)
        if self.cache is not None:
            logs["from_cache"] = record.cached_share(standing.questions)
        if standing.value is None:
            return Reward(None, record.why(standing.questions), logs=logs)
        value = standing.value
        if self.form_name == "pairs":
            logs |= {"ties": standing.ties, "orders_disagree": standing.disagree}
            return Reward(value, "won" if value > 0.5 else "lost" if value < 0.5 else "drew", logs=logs)
        if self.form_name == "yes_no":
            return Reward(value, "correct" if value > 0.5 else "wrong", logs=logs)
        low, high = self.form.scale
        return Reward(value, "scored", logs=logs | {"score": low + value * (high - low)})


def _form(form: str, scale: Sequence[float]) -> Form:
    match form:
        case "pairs":
            return pairs()
        case "yes_no":
            return yes_no()
        case "score":
            if not isinstance(scale, list | tuple) or len(scale) != 2:
                raise RewardError(f"judge: scale={scale!r} must be the lowest and the highest score, as [1, 10]")
            try:
                return score(float(scale[0]), float(scale[1]))
            except (TypeError, ValueError) as error:
                raise RewardError(f"judge: {error}") from error
    raise RewardError(f"judge: form={form!r} is unknown; there are {', '.join(FORMS)}")


def _opponents(opponents: str) -> Opponents:
    for known in OPPONENTS:
        if opponents == known:
            return known
    raise RewardError(f"judge: opponents={opponents!r} is unknown; there are {', '.join(OPPONENTS)}")


def _check_counts(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise RewardError(f"judge: {name}={value!r} must be at least 1")


def _check_seconds(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < 1e6:
            raise RewardError(f"judge: {name}={value!r} must be above 0 seconds, and below 1,000,000")


def _refuse_for_policy(**settings: Any) -> None:
    given = [name for name, value in settings.items() if value]
    if given:
        raise RewardError(
            f"judge: {given[0]} says nothing with endpoint=policy, where the run's own engine answers; remove it "
            f'(reward.kwargs.{given[0]}="")'
        )


def _extra(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(extra, Mapping | None):
        raise RewardError(f"judge: extra={extra!r} must be a table of fields for the body of every question")
    for name in extra or {}:
        if name in _OURS:
            raise RewardError(f"judge: extra.{name} is set by rlkit; use reward.kwargs.{name}, where there is one")
    return dict(extra or {})
