"""What has been heard so far: verdicts, why there is none, and what had to be asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.judge.answer import Answer, Failure
from rewards.judge.ballots import Question
from rewards.judge.verdict import Form

SHOWN = 60
"""Characters of an answer that cannot be read, in the reason."""


class Record:
    """What has been heard of each question so far."""

    def __init__(self) -> None:
        self.readings: dict[Question, float] = {}
        self.reasons: dict[Question, str] = {}
        self.again: dict[Question, int] = {}
        self.cached: set[Question] = set()
        self.versions: dict[Question, int] = {}

    def read(self, question: Question, answer: Answer | Failure, form: Form) -> None:
        """Notes the verdict of an answer, or why there is none."""
        if isinstance(answer, Failure):
            self.reasons[question] = answer.reason
            return
        if answer.version is not None:
            self.versions[question] = answer.version
        reading = form.read(answer.text) if answer.whole else None
        if reading is not None:
            self.readings[question] = reading
            return
        tail = answer.text[-SHOWN:]
        self.reasons[question] = f"no_verdict: {'cut off, ' if not answer.whole else ''}the judge ends with {tail!r}"

    def readable(self, answers: Mapping[Question, Answer | Failure]) -> dict[Question, str]:
        """Returns the texts of those answers that have a verdict."""
        read = [(q, answer) for q, answer in answers.items() if q in self.readings]
        return {question: answer.text for question, answer in read if isinstance(answer, Answer)}

    def may_ask(self, question: Question) -> bool:
        """Says whether asking (again) may bring a verdict: a server that failed has had its tries."""
        failed = self.reasons.get(question, "").startswith("infra")
        return question not in self.readings and not failed

    def why(self, questions: Sequence[Question]) -> str:
        """Returns why questions have no verdict; that the server failed says more than that an answer was garbage."""
        reasons = [self.reasons[question] for question in questions if question not in self.readings]
        return min(reasons, key=lambda reason: not reason.startswith("infra"))

    def cached_share(self, questions: Sequence[Question]) -> float:
        """Returns the share of questions that the cache answered."""
        distinct = set(questions)
        return len(distinct & self.cached) / len(distinct)

    def logs(self, questions: Sequence[Question]) -> dict[str, float]:
        """Returns the share of questions that were asked again, and the version of the weights that judged."""
        distinct = set(questions)
        shares = {"asked_again": sum(self.again.get(question, 0) > 0 for question in distinct) / len(distinct)}
        versions = [self.versions[question] for question in distinct if question in self.versions]
        return shares | ({"judge_version": float(min(versions))} if versions else {})
