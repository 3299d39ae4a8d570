"""From stored completions and verdicts to what is reported of a suite, and results.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rewards.base import thought_is_open
from rewards.extract import extract
from rewards.math.compare import Comparison
from rewards.math.decide import decide
from rewards.math.judge import Judge
from rewards.math.value import FLOATS
from rlkit.errors import UserError
from rlkit.evaluation.estimates import Estimate, Vote, estimate, majority, pass_at_k
from rlkit.evaluation.exams import Settings, reward_name
from rlkit.evaluation.records import STARTED, Completion, Key, Record, Verdict, reward_mark
from rlkit.evaluation.suites import Suite
from rlkit.watch.metrics import write_atomic

RESULTS = "results.json"
MAJORITY = "majority"
SAME = Comparison(judge=Judge(arithmetic=FLOATS), percent="either", units="optional")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on one suite."""

    suite: str
    title: str
    problems: int
    """Those with a completion."""
    samples: int
    """Completions of each problem; of the one with the fewest."""
    reward: str
    reward_mark: str
    """The fingerprint of the reward, its settings, its files and the version of rlkit."""
    estimates: Mapping[str, Estimate]
    """"pass@1", "pass@K" for powers of two and for all samples, and "majority@K" where problems have answers."""
    reasons: Mapping[str, int]
    """What the reward said, without details; the most frequent first."""
    no_verdict: int
    """Completions that no verdict was reached on; they count as not solved."""
    unjudged: int
    """Those among them where the machine failed and not the problem; another start judges them again."""
    missing: int
    """Completions that were asked for and not drawn."""
    incomplete: Sequence[str]
    """Problems with a sample that is missing or unjudged: what they are worth is still open."""
    truncated: float
    """The share of completions that hit the token limit."""
    mean_tokens: float
    outcomes: Mapping[str, Sequence[bool | None]]
    """Of each problem, by its id: whether each sample is right, None without a verdict."""
    settings: Settings


def measure(suite: Suite, record: Record, asked: Sequence[Key], settings: Settings) -> Measured:
    """Measures the completions that were asked for, as the suite's reward judges them.

    Raises UserError if there is not one.
    """
    stored, judged = record.completions, record.verdicts(reward_mark(suite.reward))
    keys = [key for key in asked if key in stored]
    if not keys:
        raise UserError(f"suite={suite.name}: there is no completion to judge; run the same without --rescore first")
    found: dict[str, list[Key]] = {}
    for key in keys:
        found.setdefault(key[0], []).append(key)
    completions, verdicts = [stored[key] for key in keys], [judged.get(key) for key in keys]
    fewest = min(len(row) for row in found.values())
    right = {row: [key in judged and judged[key].correct for key in own] for row, own in found.items()}
    estimates = {}
    for k in _ks(fewest):
        values = [pass_at_k(len(row), sum(row), k) for row in right.values()]
        estimates[f"pass@{k}"] = estimate(values, fewest / k)
    if suite.votes and fewest > 1:
        ballots = [[_vote(stored[key], judged.get(key)) for key in own[:fewest]] for own in found.values()]
        estimates[f"{MAJORITY}@{fewest}"] = estimate([majority(ballot, same_answer) for ballot in ballots])
    none = [verdict for verdict in verdicts if verdict is None or verdict.value is None]
    kinds = Counter("not judged" if verdict is None else verdict.kind or "(no reason)" for verdict in verdicts)
    return Measured(
        suite=suite.name,
        title=suite.about.title,
        problems=len(found),
        samples=fewest,
        reward=reward_name(suite.reward),
        reward_mark=reward_mark(suite.reward),
        estimates=estimates,
        reasons=dict(kinds.most_common()),
        no_verdict=len(none),
        unjudged=sum(verdict is None or verdict.redone for verdict in verdicts),
        missing=len(asked) - len(keys),
        incomplete=_incomplete(asked, stored, judged),
        truncated=fmean(completion.finish_reason == "length" for completion in completions),
        mean_tokens=fmean(len(completion.tokens) for completion in completions),
        outcomes={row: [_outcome(judged.get(key)) for key in own] for row, own in found.items()},
        settings=settings,
    )


def same_answer(first: str, second: str) -> bool:
    """Says whether two answers are one: the same text, or the same as mathematics where that is decided at once."""
    return first == second or decide(first, second, SAME) == "correct"


def write_results(folder: Path, model: str, measured: Sequence[Measured], lives: Sequence[Mapping[str, str]]) -> None:
    """Writes `folder/results.json`; it is the same, byte for byte, for two evaluations that found the same."""
    suites = {}
    for one in measured:
        numbers = asdict(one)
        suites[one.suite] = numbers.pop("estimates") | numbers
    versions = [{name: version for name, version in life.items() if name != STARTED} for life in lives]
    distinct = [life for place, life in enumerate(versions) if life not in versions[:place]]
    write_atomic(
        folder / RESULTS, json.dumps({"model": model, "suites": suites, "versions": distinct}, indent=1) + "\n"
    )


def read_results(folder: Path) -> dict[str, Any]:
    """Reads the results of an evaluation; raises UserError for a folder without, and for another kind of file."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{folder} holds no {RESULTS}; give the output_dir of an evaluation that has come to its end")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for suite in found["suites"].values():
            if not all(samples for samples in suite["outcomes"].values()):
                raise ValueError("it has problems without samples")
            _ = suite["settings"]["problems"], suite["reward"], suite["reward_mark"], set(suite.get("incomplete", ()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no result of an evaluation ({error}); give the output_dir of one") from error
    return found


def _ks(samples: int) -> list[int]:
    """Returns 1, 2, 4, ... up to the number of samples, and that number."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


def _outcome(verdict: Verdict | None) -> bool | None:
    return None if verdict is None or verdict.value is None else verdict.correct


def _incomplete(asked: Sequence[Key], stored: Mapping[Key, Completion], judged: Mapping[Key, Verdict]) -> list[str]:
    lacking = (key for key in asked if key not in stored or key not in judged or judged[key].redone)
    return list(dict.fromkeys(row for row, _ in lacking))


def _vote(completion: Completion, verdict: Verdict | None) -> Vote:
    """Reads the answer that a completion votes for; none where the reward found none, or gave no verdict."""
    if verdict is None or verdict.value is None or verdict.kind == "no_answer":
        return Vote(answer=None, correct=False)
    answer = extract(completion.completion, thought_is_open(completion.prompt), "last")
    return Vote(answer=answer.text if answer and answer.text else None, correct=verdict.correct)
