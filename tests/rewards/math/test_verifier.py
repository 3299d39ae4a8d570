from __future__ import annotations

import gzip
import json
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import Reward, RewardError, Sample
from rewards.math import MathVerifier, gold_text, verify

HERE = Path(__file__).resolve()
CASES = [json.loads(line) for line in (HERE.parent / "cases.jsonl").read_text().splitlines()]
SLOW = ("chains with sums and integrals", "safety", "values beyond floats")
THEMES = [
    pytest.param(theme, marks=pytest.mark.slow) if theme in SLOW else theme
    for theme in sorted({case["theme"] for case in CASES})
]
SHARED = HERE.parents[4] / "shared" / "data"
GSM8K = HERE.parents[3] / "rlkit" / "data" / "gsm8k"


def rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def expanded(text: Any) -> Any:
    """Long runs are written as [[text, times], ...]."""
    return "".join(piece * times for piece, times in text) if isinstance(text, list) else text


def sample(case: dict[str, Any]) -> Sample:
    completion = expanded(case["completion"]) if "completion" in case else rf"\boxed{{{expanded(case['answer'])}}}"
    return Sample(case.get("prompt", ""), completion, meta={"answer": case["gold"]})


PATIENCE = 60.0
"""Seconds for cases that have an answer to be worked out; on a busy machine computer algebra takes long."""
BRIEF = 3.0
"""Seconds for texts that are made to hang: whatever becomes of them is wrong."""


def key(case: dict[str, Any]) -> str:
    """The settings of the verifier that judges a case."""
    hangs = case["theme"] in ("safety", "adversarial") and case["verdict"] == 0
    return json.dumps(case.get("settings", {}) | {"timeout": BRIEF if hangs else PATIENCE})


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[str, MathVerifier]]:
    made = {settings: MathVerifier(**json.loads(settings), workers=1) for settings in set(map(key, CASES))}
    yield made
    for verifier in made.values():
        verifier.close()


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(timeout=BRIEF, workers=1)
    yield made
    made.close()


def test_the_cases_are_many_and_no_two_are_the_same() -> None:
    assert len(CASES) >= 400
    keys = [json.dumps({key: case[key] for key in case if key not in ("theme", "verdict")}) for case in CASES]
    assert [key for key, times in Counter(keys).items() if times > 1] == []
    verdicts = Counter(case["verdict"] for case in CASES)
    assert min(verdicts[1], verdicts[0]) >= 400  # neither an accept-all nor a reject-all verifier gets far


@pytest.mark.parametrize("theme", THEMES)
def test_cases(theme: str, verifiers: dict[str, MathVerifier]) -> None:
    wrong = []
    for case in (case for case in CASES if case["theme"] == theme):
        [reward] = verifiers[key(case)]([sample(case)])
        if reward.value != case["verdict"]:
            wrong.append((case["gold"], sample(case).completion[:100], case["verdict"], reward))
    assert wrong == []


def verdicts(verifier: MathVerifier, golds: list[Any], completions: list[str]) -> list[Reward]:
    return verifier([Sample("", text, meta={"answer": gold}) for gold, text in zip(golds, completions, strict=True)])


def accepted_others(verifier: MathVerifier, golds: list[str], completions: list[str]) -> set[tuple[str, str]]:
    """Gold and answer of the accepted pairs that are not the same text, each gold against the answer of another row."""
    order = random.Random(0).sample(range(len(golds)), len(golds))
    results = verdicts(verifier, golds, [completions[at] for at in order])
    assert {result.reason for result in results} <= {"correct", "wrong"}
    pairs = [(str(gold_text(gold)), str(gold_text(golds[at]))) for gold, at in zip(golds, order, strict=True)]
    return {pair for pair, result in zip(pairs, results, strict=True) if result.value == 1 and pair[0] != pair[1]}


@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_solution_verifies_and_no_other_does(split: str, count: int, verifier: MathVerifier) -> None:
    golds = [row["answer"] for row in rows(GSM8K / f"{split}.jsonl.gz")]
    assert len(golds) == count
    assert Counter(result.reason for result in verdicts(verifier, golds, golds)) == {"correct": count}
    bare = [rf"\boxed{{{gold.rpartition('####')[2].strip()}}}" for gold in golds]
    assert Counter(result.reason for result in verdicts(verifier, golds, bare)) == {"correct": count}
    # Equal as integers by Python's own reading, which is not the one under test.
    others = accepted_others(verifier, golds, golds)
    assert [pair for pair in others if int(pair[0].replace(",", "")) != int(pair[1].replace(",", ""))] == []


def test_every_math500_gold_verifies_and_no_other_does(verifier: MathVerifier) -> None:
    data = rows(SHARED / "math500" / "test.jsonl.gz")
    answers, solutions = [row["answer"] for row in data], [row["solution"] for row in data]
    boxed = [rf"\boxed{{{answer}}}" for answer in answers]
    for golds, completions in ((answers, boxed), (solutions, solutions), (answers, solutions), (solutions, boxed)):
        assert len(golds) == 500
        assert {result.reason for result in verdicts(verifier, golds, completions)} == {"correct"}
    assert accepted_others(verifier, answers, boxed) == set()


@pytest.mark.slow
def test_every_math_train_solution_verifies_and_no_other_does(verifier: MathVerifier) -> None:
    golds = [row["solution"] for row in rows(SHARED / "math_train4500" / "train.jsonl.gz")]
    assert Counter(result.reason for result in verdicts(verifier, golds, golds)) == {"correct": 4500}
    same = {("1", r"100\%"), ("3:1", "3"), ("9", "x=9"), (r"9^\circ", "9"), (r"\frac{1}{6}", r"\frac16")}
    assert accepted_others(verifier, golds, golds) <= same


@pytest.mark.parametrize(
    ("gold", "completion", "value", "reason", "answer", "place"),
    [
        ("7", r"\boxed{7}", 1.0, "correct", "7", "boxed"),
        ("7", "<answer>8</answer>", 0.0, "wrong", "8", "answer"),
        ("7", "7", 0.0, "no_answer", "", ""),
        ("7", r"\boxed{}", 0.0, "no_answer", "", "boxed"),
        ("7", r"\boxed{7)}", 0.0, "unparsable", "7)", "boxed"),
        ("7", r"#### 9^{9^{9^9}}", 0.0, "guard", "9^{9^{9^9}}", "hashes"),
        pytest.param(
            *("7", r"\boxed{\int_0^\infty \frac{\sin^9 x^7}{x^{11}+e^x}\,dx}", 0.0, "timeout", None, "boxed"),
            marks=pytest.mark.slow,
        ),
        (r"\frac{7}{0}", r"\boxed{7}", None, "gold_unparsable", "7", "boxed"),
        (None, r"\boxed{7}", None, "gold_unparsable", "7", "boxed"),
        ("", "7", None, "gold_unparsable", "", ""),
    ],
)
def test_reasons_and_logs(
    gold: Any, completion: str, value: float | None, reason: str, answer: str | None, place: str, verifier: MathVerifier
) -> None:
    [reward] = verifier([Sample("", completion, meta={"answer": gold})])
    assert (reward.value, reward.reason, reward.logs["place"]) == (value, reason, place)
    assert answer is None or reward.logs["answer"] == answer
    assert reward.logs["gold"] == (gold or "")


def test_a_batch_keeps_its_order_and_asks_workers_side_by_side() -> None:
    pairs = [
        (r"\sqrt{8}", r"2\sqrt{2}", 1.0),
        ("7", "8", 0.0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1.0),
        (r"\ln 4", r"2\ln 2", 1.0),
    ]
    with_worker = MathVerifier(workers=2)
    try:
        results = verdicts(
            with_worker, [gold for gold, _, _ in pairs], [rf"\boxed{{{answer}}}" for _, answer, _ in pairs]
        )
    finally:
        with_worker.close()
    assert [result.value for result in results] == [value for _, _, value in pairs]
    assert with_worker([]) == []


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("42", "42"),
        (42, "42"),
        (-0.5, "-0.5"),
        (0.1 + 0.2, "0.3"),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        (None, None),
        ([42], None),
        ("", None),
        (r"\boxed{}", None),
        (r"$\boxed{4}$ or rather $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"so it is $\boxed 5$.", "5"),
        ("2 + 2 = <<2+2=4>>4\n#### 1,234", "1,234"),
        ("<think>1</think><answer>4</answer>", "4"),
        (" $x$ ", "$x$"),
    ],
)
def test_gold_text(gold: Any, text: str | None) -> None:
    assert gold_text(gold) == text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extraction": "loose"}, "extraction='loose'; it is one of strict, lenient, last"),
        ({"percent": True}, "percent=True; it is one of either, value, ignore"),
        ({"units": "strip"}, "units='strip'; it is one of optional, required, ignore"),
        ({"timeout": 0}, "timeout=0; give seconds"),
        ({"timeout": "5"}, "timeout='5'; give seconds"),
        ({"timeout": float("nan")}, "timeout=nan; give seconds"),
        ({"workers": 0}, "workers=0; give a number of processes"),
        ({"workers": 1.5}, "workers=1.5; give a number of processes"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError) as error:
        MathVerifier(**settings)
    assert message in str(error.value)


def test_a_row_without_a_gold_column_is_an_error(verifier: MathVerifier) -> None:
    with pytest.raises(RewardError, match=r"needs the column 'answer', which sample 1 .*\(its columns: solution\)"):
        verifier([Sample("", "", meta={"answer": "1"}), Sample("", "", meta={"solution": "1"})])


def test_it_is_loaded_by_name_and_pickles() -> None:
    reward = rewards.load("math", percent="value", workers=1)
    copy = pickle.loads(pickle.dumps(reward))
    direct = pickle.loads(pickle.dumps(MathVerifier(units="ignore", extraction="lenient", timeout=2, workers=3)))
    assert (direct.comparison.units, direct.extraction, direct.timeout, direct.pool.num_workers) == (
        "ignore",
        "lenient",
        2,
        3,
    )
    samples = [Sample("", text, meta={"answer": r"20\%"}) for text in (r"\boxed{20}", r"\boxed{0.2}", "20")]
    for function in (reward, copy):
        assert [(r.value, r.reason) for r in function(samples)] == [
            (0.0, "wrong"),
            (1.0, "correct"),
            (0.0, "no_answer"),
        ]


def test_verify_judges_a_bare_answer() -> None:
    assert verify(r"\frac{1}{2}", "$x = 0.5$") == Reward(1.0, "correct", logs={"answer": "$x = 0.5$"})
    assert verify("7", r"so \boxed{8}") == Reward(0.0, "wrong", logs={"answer": "8"})
    assert verify("", "7").value is None
    assert verify(r"20\%", "20", percent="value").reason == "wrong"
    assert verify(r"2\sqrt{2}", r"\sqrt{8}").reason == "correct"  # by a worker, which ends with the call


def test_the_caller_never_imports_computer_algebra() -> None:
    script = (
        "import sys, rewards\n"
        "from rewards import Sample\n"
        "from rewards.math import MathVerifier\n"
        "verifier = MathVerifier(workers=1)\n"
        "row = {'answer': '2'}\n"
        "[reward] = verifier([Sample('', '#### (\\\\sqrt2)^2', meta=row)])\n"  # decided by a worker
        "verifier.close()\n"
        "heavy = {'sympy', 'mpmath', 'math_verify', 'numpy', 'torch', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'{reward} {heavy}' if heavy or reward.reason != 'correct' else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=HERE.parents[3], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
