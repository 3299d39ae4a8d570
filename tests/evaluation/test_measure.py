"""From stored lines to numbers: votes, samples without a verdict, problems with fewer samples, and the pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.config import EvalRun, RewardConfig
from rlkit.config.compose import load_config
from rlkit.data.rows import Row
from rlkit.errors import UserError
from rlkit.evaluation.measure import Measured, measure, read_results, same_answer, write_results
from rlkit.evaluation.records import Completion, Record, Verdict, reward_mark
from rlkit.evaluation.report import columns, summary, warnings, write_report
from rlkit.evaluation.suites import FOLDER, Suite, _read_about
from tests.watch.test_report import Page

MATH = RewardConfig(fn="math", kwargs={}, workers=1, timeout=20)
SETTINGS = {"seed": 0, "sampling.temperature": 0.6, "problems": "p"}


def suite(number: int, name: str = "gsm8k") -> Suite:
    rows = tuple(
        Row(id=f"{name}/{i}", question=f"{i} + {i} =", answer=str(2 * i), solution="", meta={"answer": str(2 * i)})
        for i in range(number)
    )
    return Suite(name=name, about=_read_about(FOLDER / f"{name}.yaml"), rows=rows, reward=MATH, digest="d")


def filled(folder: Path, of: Suite, samples: Mapping[str, Sequence[str]]) -> Record:
    """A record with completions that give these answers; "?" has no verdict, "!" none because a machine failed, "-" no
    answer, and "..." was cut off."""
    record = Record(folder, of.name)
    for id, answers in samples.items():
        gold = of.row(id).answer
        for number, answer in enumerate(answers):
            completion = Completion(
                row=id,
                sample=number,
                settings="s",
                life=0,
                seed=0,
                prompt="<|user|>?<|assistant|>",
                completion="so" if answer in "-?!..." else f"<answer>{answer}</answer>",
                tokens=(1,) * (4 if answer == "..." else 2),
                finish_reason="length" if answer == "..." else "stop",
            )
            record.add_completions([completion])
            reason = {"?": "gold_unparsable", "!": "infra", "-": "no_answer", "...": "no_answer"}.get(answer)
            right = same_answer(gold, answer)
            verdict = Verdict(
                row=id,
                sample=number,
                reward=reward_mark(MATH),
                value=None if answer in "?!" else float(right),
                correct=right,
                reason=reason or ("correct" if right else "wrong"),
                parts={},
                seconds=0.0,
            )
            record.add_verdicts([verdict])
    return record


def measured(folder: Path, samples: Mapping[str, Sequence[str]], asked: int = 0) -> Measured:
    of = suite(len(samples))
    most = asked or max(map(len, samples.values()))
    keys = [(id, number) for id in samples for number in range(most)]
    return measure(of, filled(folder, of, samples), keys, SETTINGS)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("7", "7", True),
        ("7", "7.0", True),
        (r"\frac{1}{2}", "0.5", True),
        ("1,000", "1000", True),
        ("x + 1", "1 + x", True),
        ("7", "8", False),
        ("", "8", False),
        ("seven {", "eight {", False),
        ("2^{10^{10^{10}}}", "3", False),
        ("(" * 500, ")" * 500, False),
    ],
)
def test_answers_are_the_same_as_mathematics_and_no_text_is_an_error(first: str, second: str, same: bool) -> None:
    assert same_answer(first, second) == same


def test_a_majority_votes_on_answers_not_on_texts(tmp_path: Path) -> None:
    """Problem 0: 0 twice against 1, 2. Problem 1: 5 = 5.0 outvotes 2. Problem 2: nobody but one votes, and is right."""
    found = measured(
        tmp_path,
        {"gsm8k/0": ["0", "0.0", "1", "2"], "gsm8k/1": ["2", "5", "5.0", "-"], "gsm8k/2": ["-", "4", "-", "?"]},
    )
    assert list(found.estimates) == ["pass@1", "pass@2", "pass@4", "majority@4"]
    assert found.estimates["majority@4"].value == pytest.approx(2 / 3)
    assert found.estimates["pass@1"].value == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert found.estimates["pass@2"].value == pytest.approx((5 / 6 + 1 / 2 + 1 / 2) / 3)
    assert found.outcomes["gsm8k/2"] == [False, True, False, None]


def test_what_has_no_verdict_is_not_solved_and_is_counted(tmp_path: Path) -> None:
    found = measured(tmp_path, {"gsm8k/0": ["0", "!"], "gsm8k/1": ["?", "2"], "gsm8k/2": ["...", "!"]})
    assert found.estimates["pass@1"].value == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert (found.no_verdict, found.unjudged, found.missing) == (3, 2, 0)
    assert found.incomplete == ["gsm8k/0", "gsm8k/2"]
    assert found.reasons == {"correct": 2, "infra": 2, "gold_unparsable": 1, "no_answer": 1}
    assert (found.truncated, found.mean_tokens) == (pytest.approx(1 / 6), pytest.approx(14 / 6))
    texts = list(warnings(found))
    assert texts == [
        "GSM8K: 3 of 6 completions have no verdict and count as not solved.",
        "GSM8K: 17% of the completions hit the token limit; they count as they stand.",
    ]


def test_problems_with_fewer_samples_bound_k_and_missing_ones_are_counted(tmp_path: Path) -> None:
    """As a rescore finds them in a folder whose evaluation was ended early."""
    found = measured(tmp_path, {"gsm8k/0": ["0", "1", "1"], "gsm8k/1": ["2", "3"], "gsm8k/2": []}, asked=3)
    assert (found.problems, found.samples, found.missing) == (2, 2, 4)
    assert list(found.estimates) == ["pass@1", "pass@2", "majority@2"]
    assert found.estimates["pass@1"].value == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found.estimates["pass@2"].value == pytest.approx((2 / 3 + 1) / 2)
    assert "4 completions have not been drawn" in next(iter(warnings(found)))
    with pytest.raises(UserError, match="no completion to judge"):
        measure(suite(1), Record(tmp_path / "empty", "gsm8k"), [("gsm8k/0", 0)], SETTINGS)


def test_verdicts_of_another_reward_do_not_count(tmp_path: Path) -> None:
    of = suite(1)
    record = filled(tmp_path, of, {"gsm8k/0": ["0"]})
    other = replace(of, reward=replace(MATH, fn="number"))
    found = measure(other, record, [("gsm8k/0", 0)], SETTINGS)
    assert (found.reward, found.reasons, found.unjudged) == ("number", {"not judged": 1}, 1)


def test_programs_have_no_majority(tmp_path: Path) -> None:
    of = suite(1, "mbpp")
    found = measure(of, filled(tmp_path, of, {"mbpp/0": ["0", "0"]}), [("mbpp/0", 0), ("mbpp/0", 1)], SETTINGS)
    assert list(found.estimates) == ["pass@1", "pass@2"]


def test_results_are_read_back_and_hold_no_times(tmp_path: Path) -> None:
    found = measured(tmp_path, {"gsm8k/0": ["0", "1"]})
    lives = [{"started": str(number), "torch": torch} for number, torch in enumerate(("1", "1", "2"))]
    write_results(tmp_path, "model", [found], lives)
    read = read_results(tmp_path)
    assert read["versions"] == [{"torch": "1"}, {"torch": "2"}]
    assert read["suites"]["gsm8k"]["pass@1"]["value"] == 0.5
    assert read["suites"]["gsm8k"]["settings"] == SETTINGS
    (tmp_path / "results.json").write_text(json.dumps({"suites": []}))
    with pytest.raises(UserError, match="is no result of an evaluation"):
        read_results(tmp_path)


def test_the_table_and_the_page_of_suites_with_different_numbers_of_samples(tmp_path: Path) -> None:
    """A column for every estimate that any suite has; a dash where another has it alone."""
    first, second = suite(2), suite(2, "mbpp")
    records = [
        filled(tmp_path, first, {"gsm8k/0": ["0"] * 8, "gsm8k/1": ["2"] + ["-"] * 7}),
        filled(tmp_path, second, {"mbpp/0": ["0"], "mbpp/1": ["..."]}),
    ]
    found = [
        measure(first, records[0], [(f"gsm8k/{i}", j) for i in range(2) for j in range(8)], SETTINGS),
        measure(second, records[1], [(f"mbpp/{i}", 0) for i in range(2)], {"seed": 1}),
    ]
    assert columns(found) == ["pass@1", "pass@2", "pass@4", "pass@8", "majority@8"]
    table = summary(found)
    assert len({line.index("samples") + 7 for line in table[:1]}) == 1 and table[2].rstrip().endswith("-")
    cfg = load_config("eval", EvalRun, ["model.path=a/b <model>", "suite=gsm8k,mbpp", f"output_dir={tmp_path}"])
    page = Page(write_report(cfg, [first, second], records, found, [{"started": "now", "torch": "2"}]).read_text())
    assert page.all("h1") == ["rlkit eval: b <model>"]
    assert page.all("div.tile main")[0].startswith("GSM8K56.2 %")
    assert any("50% of the completions hit" in text for text in page.all("li"))
    assert page.all("summary")[:2] == ["GSM8K", "MBPP"]
    assert len(page.all("div.answer correct")) == 5, "three samples of problem 0, one of problem 1, one program"
    assert {"now", "2", "math"} <= set(page.all("td"))
