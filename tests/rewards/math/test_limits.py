"""No text raises out of the reward, hides from its 0 or takes longer than its time, wherever the work is done."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import fuzz_math
from rewards import Reward, Sample
from rewards.math import MathVerifier
from rewards.math.compare import Comparison
from rewards.math.decide import MAX_STEPS, decide, is_readable
from rewards.math.judge import Judge
from rewards.math.read import read
from rewards.math.value import FLOATS, Steps, TooLong

pytestmark = pytest.mark.slow

COMPARISON = Comparison(judge=Judge(arithmetic=FLOATS), percent="either", units="optional")


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(timeout=1, workers=1)
    yield made
    made.close()


def joined(texts: list[str]) -> str:
    return r"\{" + ",".join(texts) + r"\}"


SUMS = [rf"x+{number}" for number in range(90)]
HEAVY = {
    "sums of a set": (joined(SUMS), joined([f"{number}+x" for number in range(90)][::-1])),
    "a long set": (r"\{1,2\}", joined([f"x+{number}" for number in range(150)])),
    "quadratic inequalities": ("x>2", ",".join(f"x^2>{number}" for number in range(120))),
}


@pytest.mark.parametrize("name", HEAVY)
def test_long_comparisons_leave_the_process_that_cannot_be_killed(name: str) -> None:
    assert decide(*HEAVY[name], COMPARISON) == "undecided"
    steps = Steps(MAX_STEPS)
    limited = Comparison(judge=Judge(arithmetic=FLOATS, steps=steps), percent="either", units="optional")
    with pytest.raises(TooLong):
        limited.equal(*(read(text)[0] for text in HEAVY[name]))
    assert steps.left < 0


@pytest.mark.parametrize("name", HEAVY)
def test_what_left_the_process_still_gets_a_verdict(name: str, verifier: MathVerifier) -> None:
    [reward] = verifier([Sample("", rf"\boxed{{{HEAVY[name][1]}}}", meta={"answer": HEAVY[name][0]})])
    assert reward.value == 0.0 and reward.reason in ("wrong", "timeout")


def test_a_product_of_many_matrices_ends_with_its_time(verifier: MathVerifier) -> None:
    product = r"\begin{pmatrix}x&2\\3&y\end{pmatrix}" * 24
    assert decide(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", product, COMPARISON) == "symbolic"
    [reward] = verifier([Sample("", rf"\boxed{{{product}}}", meta={"answer": r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"})])
    assert (reward.value, reward.reason) == (0.0, "timeout")


def test_long_lists_of_constants_are_compared_at_once() -> None:
    rng = random.Random(0)
    values = [rf"\sqrt{{{number}}}+{number}" for number in range(2, 50)]
    gold, answer = joined(values), joined(rng.sample(values, len(values)))
    assert decide(gold, answer.replace("+", " + "), COMPARISON) in ("correct", "undecided")
    assert decide(gold, joined([*values[1:], "7"]), COMPARISON) == "wrong"


@pytest.mark.parametrize("text", [r"\frac{1}{2}", "x>5", r"\sum_{k=1}^{3} k", "24\u5143", r"\{x \mid x>2\}"])
def test_an_exception_is_the_answers_fault(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that nobody has found yet is put into the reader."""
    real = read

    def faulty(text: str, is_gold: bool = False) -> object:
        if "boom" in text:
            raise ZeroDivisionError("a fault of ours")
        return real(text, is_gold)

    monkeypatch.setattr("rewards.math.decide.read", faulty)
    assert decide(text, "boom!", COMPARISON) == "unparsable"
    assert decide("boom!", text, COMPARISON) == "gold_unparsable"
    assert is_readable(text) and not is_readable("boom!")


MORTAL = """
import os
from rewards.math import worker

real = worker.judge


def serve(channel):
    worker.judge = lambda request: os._exit(1) if "y_{" in request["answer"] else real(request)
    worker.serve(channel)
"""
"""The program of a worker that dies of certain texts."""


def test_an_answer_that_kills_its_worker_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mortal_worker.py").write_text(MORTAL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("rewards.math.pool.SERVE", "mortal_worker:serve")
    mortal = MathVerifier(timeout=60, workers=1)
    samples = [
        Sample("", r"\boxed{y_{1}+\sqrt{2}-y_{1}}", meta={"answer": r"\sqrt{2}"}),
        Sample("", r"\boxed{2^{1/2}}", meta={"answer": r"\sqrt{2}"}),
        Sample("", r"\boxed{(y_{1}^2+1)^{1/2}}", meta={"answer": r"\sqrt{y_{1}^2+1}"}),
    ]
    try:
        rewards = mortal(samples)
    finally:
        mortal.close()
    assert [(reward.value, reward.reason) for reward in rewards] == [
        (0.0, "guard"),
        (1.0, "correct"),
        (None, "worker_lost"),  # this gold kills workers by itself
    ]


@pytest.mark.parametrize(("count", "seed"), [(300, 4), pytest.param(2_000, 8, marks=pytest.mark.slow)])
def test_no_text_raises_or_hides_from_its_gold(count: int, seed: int, verifier: MathVerifier) -> None:
    assert fuzz_math.faults(count, verifier, seed=seed) == []


def test_the_fuzz_sees_what_it_looks_for(verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(fuzz_math.texts(50)) == list(fuzz_math.texts(50)) != list(fuzz_math.texts(50, seed=1))
    monkeypatch.setattr(fuzz_math, "_judged", lambda *_: Reward(None, "worker_lost"))
    assert any("hides from the gold" in fault for fault in fuzz_math.faults(5, verifier))
    assert any("is readable" in fault for fault in fuzz_math.faults(50, verifier))

    def broken(*_: object) -> Reward:
        raise ValueError("a fault")

    monkeypatch.setattr(fuzz_math, "_judged", broken)
    assert len(fuzz_math.faults(5, verifier)) == 5
