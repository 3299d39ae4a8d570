from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from benchmarks.verifier import Judged, KillableMathVerify, gsm8k_style, judge_ours, load_cases, times
from rewards.math import MathVerifier


@pytest.fixture
def math_verify() -> Iterator[KillableMathVerify]:
    made = KillableMathVerify(limit=2.0)
    yield made
    made.close()


@pytest.mark.slow
def test_math_verify_is_killed_where_it_hangs_and_goes_on(math_verify: KillableMathVerify) -> None:
    assert math_verify.judge("42", r"\boxed{42}").verdict == 1.0
    assert math_verify.judge("42", r"\boxed{1E999999999-1}") == Judged(verdict="killed", seconds=2.0)
    after = math_verify.judge(r"\frac{1}{2}", r"\boxed{0.4}")
    assert after.verdict == 0.0 and 0 < after.seconds < 2.0


def test_made_up_answers_are_half_right_and_say_what_they_claim() -> None:
    answers = gsm8k_style(400, seed=3)
    assert 150 < sum(verdict for _, _, verdict in answers) < 250
    for gold, completion, verdict in answers:
        end = completion.rpartition("\n")[2].replace(",", "")
        found = re.search(r"-?\d+", end.replace(".00", ""))
        assert found and (int(found.group()) == int(gold.rpartition("####")[2].replace(",", ""))) == bool(verdict)
    verifier = MathVerifier(workers=1)
    assert all(judge_ours(verifier, gold, completion).verdict == verdict for gold, completion, verdict in answers)
    verifier.close()


def test_cases_of_the_comparison_are_those_without_switches() -> None:
    cases = load_cases()
    assert len(cases) >= 400 and all(case["verdict"] in (0, 1) for case in cases)
    assert all(isinstance(case["completion"], str) for case in cases)
    assert not any("settings" in case or "prompt" in case for case in cases)


def test_times_are_in_milliseconds() -> None:
    judged = [Judged(verdict=1.0, seconds=number / 1000) for number in range(1, 101)]
    assert times("x", judged) == "| x | 50.500 | 50.500 | 100.000 | 100.000 |"
