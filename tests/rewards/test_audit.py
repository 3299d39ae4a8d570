"""The audit finds each fault in a reward made for it, and none in the rewards we ship."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards.attacks import FORMS, LONG, ROWS, answer_tricks, form_tricks, fuzz_texts, gold_of
from rewards.audit import Finding, audit
from rewards.subject import AuditError, Subject

pytestmark = pytest.mark.slow

PLUGINS = """
import os, sys, time

calls = 0

def contains(completion, answer):
    return answer in completion

def last_word(completion, answer):
    return completion.rstrip(".}").endswith(answer)

def loose_tags(completion):
    return "<think>" in completion and "</answer>" in completion

def executes(completion, answer):
    inside = completion.rpartition("<answer>")[2].partition("</answer>")[0]
    try:
        return eval(inside, {}) == float(answer)
    except Exception:
        return 0.0

def hangs(completion):
    time.sleep(600)

def hangs_on_long(completion, answer):
    while len(completion) > 100_000:
        pass
    return completion.endswith(f"<answer>{answer}</answer>") and completion.count("<answer>") == 1

def ends(completion):
    os._exit(3)

def drifts(completion):
    global calls
    calls += 1
    return calls

def by_place(completions):
    return [float(place) for place, _ in enumerate(completions)]

def by_hash(completion):
    return hash(completion) % 1000

def no_verdict(completion):
    return None

def raises(completion):
    raise KeyError("x")

def raises_on_empty(completion):
    return completion[0] == "<"

def short_list(completions):
    return [1.0]

def not_a_number(completion):
    return float("nan")

def text(completion):
    return "1.0"

def needs_a_column(completion, gold):
    return gold == "7"

def prints(completion):
    print("noise")
    sys.stdout.flush()
    return -1.0 if len(completion) > 50_000 else 0.0

def zero(completion, answer):
    return 0.0

def zero_unless_cut_off(completion, finish_reason):
    return None if finish_reason == "length" else 0.0

def raises_on_no_answer(completion, answer):
    inside = completion.rpartition("<answer>")[2].partition("</answer>")[0]
    return completion.count("<answer>") == 1 and inside == str(int(inside)) and inside == answer

def hangs_on_blank(completion, answer):
    while "<answer> " in completion:
        pass
    return completion.endswith(f"</think><answer>{answer}</answer>") and completion.count("<answer>") == 1

class Unpicklable:
    def __init__(self):
        if "started" in os.environ:
            raise RuntimeError("the port is taken")
        os.environ["started"] = "1"

    def __call__(self, completion):
        return len(completion) / 1e6
"""


# Judges that rightly have no verdict when a service fails, each in its own way; the last two are at fault besides.
FLAKY = """
import os

calls = 0

def right(completion, answer):
    return float(completion.endswith(f"</think><answer>{answer}</answer>") and completion.count("<answer>") == 1)

def count():
    global calls
    calls += 1
    return calls

def every_third(completion, answer):
    return None if count() % 3 == 0 else right(completion, answer)

def while_it_starts(completion, answer):
    return None if count() <= 20 else right(completion, answer)

def when_it_is_tired(completion, answer):
    return None if 60 < count() < 90 else right(completion, answer)

def in_batches(completions, answer):
    found = [right(text, gold) for text, gold in zip(completions, answer, strict=True)]
    return [None if count() % 4 == 0 else value for value in found]

def in_its_second_process(completion, answer):
    return None if "second" in os.environ and count() % 2 else right(completion, answer)

def on_long_texts(completion, answer):
    return None if len(completion) > 10_000 else right(completion, answer)

def without_an_answer(completion, answer):
    return None if "<answer>" not in completion and "7" not in completion else right(completion, answer)

class Copied:
    def __init__(self):
        self.fails = "made" in os.environ
        os.environ["made"] = "once"

    def __call__(self, completion, answer):
        return None if self.fails and count() % 2 else right(completion, answer)

def never_twice(completion, answer):
    return None if (count() - 1) % 56 >= 28 else right(completion, answer)

def drifting(completion, answer):
    return None if count() % 3 == 0 else calls / 1000

def paying(completion, answer):
    return None if count() % 3 == 0 else float(answer in completion)
"""


@pytest.fixture(scope="module")
def flaky(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "flaky.py"
    path.write_text(FLAKY)
    return str(path)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "plugin.py"
    path.write_text(PLUGINS)
    return str(path)


def findings(name: str, seconds: float = 30.0, **settings: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in audit(name, settings, seconds=seconds)}


def faults(found: dict[str, Finding]) -> set[str]:
    return {check for check, finding in found.items() if finding.result == "FAIL"}


def test_the_number_reward_has_no_fault_and_every_check_ran() -> None:
    found = findings("number")
    assert faults(found) == set() and [finding.result for finding in found.values()] == ["pass"] * 7
    # by hand: four sums right in each of four forms, wrong in one; four programs and four wrong ones
    assert found["contract"].details == ("28 completions: 24 x 0, 4 x 1", "20 x no_answer, 4 x correct, 4 x wrong")
    assert "in the form <answer>" in found["known tricks"].details[0]


@pytest.mark.parametrize(
    ("name", "settings", "tricks"),
    [
        ("format", {}, "pass"),
        ("language", {}, "skip"),
        ("repetition", {}, "skip"),
        ("length", {"max_completion_len": 100, "soft_punish_cache": 20}, "skip"),
        ("cosine", {"fn": "number", "max_len": 100}, "pass"),
        ("composite", {"rewards": [["number", 1.0], ["format", 0.1]]}, "pass"),
        ("math", {}, "pass"),
    ],
)
def test_the_other_built_in_rewards_have_no_fault(name: str, settings: dict[str, Any], tricks: str) -> None:
    found = findings(name, **settings)
    assert faults(found) == set(), found
    assert found["known tricks"].result == tricks


def test_the_code_reward_has_no_fault() -> None:
    found = findings("code", seconds=60)
    assert faults(found) == set(), found
    assert "in the form program" in found["known tricks"].details[0]


@pytest.mark.parametrize(
    ("fn", "check", "words"),
    [
        ("contains", "known tricks", "every number: earns 1, as an honest answer does (1)"),
        ("contains", "known tricks", "the answer only in the thought"),
        ("last_word", "known tricks", "two answers at once"),
        ("loose_tags", "known tricks", "two answers: earns 1"),
        ("executes", "hostile texts", "Python in tags: it executes what the completion says"),
        ("ends", "contract", "ends its process (exit code 3)"),
        ("drifts", "determinism", "get other rewards when judged again"),
        ("by_place", "determinism", "depend on the order of the batch"),
        ("by_hash", "determinism", "another process gives other rewards"),
        ("no_verdict", "contract", "no verdict on any honest completion"),
        ("raises", "contract", "raised KeyError: 'x'"),
        ("raises_on_empty", "hostile texts", "empty: reward"),
        ("zero", "contract", "earns 0 whatever the completion is"),
        ("zero_unless_cut_off", "contract", "earns 0 whatever the completion is"),
        ("raises_on_no_answer", "known tricks", "an empty answer: reward"),
        ("short_list", "contract", "must return a list of 28 rewards"),
        ("not_a_number", "contract", "returned 'nan'"),
        ("text", "contract", "returned '1.0'"),
        ("needs_a_column", "contract", "needs gold, which sample 0"),
        ("Unpicklable", "pickling", "cannot be made: RuntimeError: the port is taken"),
        ("missing", "load", "has no function 'missing'"),
    ],
)
def test_a_faulty_reward_is_found_out(plugin: str, fn: str, check: str, words: str) -> None:
    found = findings(f"{plugin}:{fn}")
    assert found[check].result == "FAIL"
    assert any(words in detail for detail in found[check].details), found[check].details
    if check in ("load", "contract"):
        assert list(found)[-1] == check, "what cannot be called is not called again"


@pytest.mark.parametrize(
    "fn",
    [
        "every_third", "while_it_starts", "when_it_is_tired", "in_batches", "in_its_second_process", "on_long_texts",
        "without_an_answer", "Copied",
    ],
)  # fmt: skip
def test_a_judge_that_has_no_verdict_now_and_then_is_not_at_fault(
    flaky: str, fn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called non-deterministic and not picklable, and tricks were said to earn what a missing verdict earns."""
    start = Subject.start

    def count_starts(subject: Subject) -> None:
        start(subject)
        monkeypatch.setenv("second", "yes")

    monkeypatch.setattr(Subject, "start", count_starts)
    found = findings(f"{flaky}:{fn}")
    assert faults(found) == set() and len(found) == 7, found
    assert found["known tricks"].result == "pass" and "in the form <answer>" in found["known tricks"].details[0]
    left_out = [
        detail for check in ("determinism", "pickling") for detail in found[check].details if "left out" in detail
    ]
    assert bool(left_out) == (fn not in ("on_long_texts", "without_an_answer")), found


@pytest.mark.parametrize(
    ("fn", "check", "words"),
    [
        ("drifting", "determinism", "get other rewards when judged again"),
        ("drifting", "pickling", "an unpickled copy gives other rewards"),
        ("paying", "known tricks", "the answer within another: earns 1, as an honest answer does (1)"),
    ],
)
def test_a_judge_that_is_at_fault_does_not_hide_behind_missing_verdicts(
    flaky: str, fn: str, check: str, words: str
) -> None:
    found = findings(f"{flaky}:{fn}")[check]
    assert found.result == "FAIL" and any(words in detail for detail in found.details), found


def test_what_cannot_be_compared_is_skipped_and_not_passed(flaky: str) -> None:
    """28 honest completions with a verdict, then 28 without, and so on."""
    found = findings(f"{flaky}:never_twice")
    for check in ("determinism", "pickling"):
        assert found[check].result == "skip"
        assert found[check].details[0] == "no completion had a verdict both times: nothing to compare"


def test_prints_stay_out_of_the_table(plugin: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert faults(findings(f"{plugin}:prints")) == set()
    assert capfd.readouterr().out == ""


def test_a_hang_is_cut_off_and_the_next_call_has_a_process_again(plugin: str) -> None:
    subject = Subject(f"{plugin}:hangs_on_long", {}, seconds=2.0)
    long = rewards.Sample("", "x" * LONG, meta=ROWS[0])
    short = rewards.Sample("", "<answer>7</answer>", meta=ROWS[0])
    try:
        for _ in range(2):
            with pytest.raises(AuditError, match=r"hangs: no answer within 2 s"):
                subject.judge([long])
            assert subject.judge([short]).rewards[0].value == 1.0
    finally:
        subject.end()


def test_a_trick_that_hangs_is_a_fault(plugin: str) -> None:
    found = findings(f"{plugin}:hangs_on_blank", seconds=2.0)
    details = found["known tricks"].details
    assert details[0] == "a blank answer: hangs: no answer within 2 s" and len(details) <= 2


def test_hanging_rewards_are_found_out(plugin: str) -> None:
    found = findings(f"{plugin}:hangs", seconds=1)
    assert found["contract"].details == ("hangs: no answer within 1 s",)
    found = findings(f"{plugin}:hangs_on_long", seconds=1)
    assert faults(found) == {"hostile texts"}
    assert [detail.endswith("hangs: no answer within 1 s") for detail in found["hostile texts"].details] == [
        True
    ] * 3 + [False]
    assert found["hostile texts"].details[-1] == "the other texts were not tried"


def test_rows_of_ones_own() -> None:
    rows = [{"question": "?", "answer": answer} for answer in ("10", "20", "10")]
    found = {finding.check: finding for finding in audit("number", {}, rows)}
    assert faults(found) == set() and "3 x correct" in found["contract"].details[1]
    [_, refused] = audit("number", {}, [{"question": "?", "answer": "7"}])
    assert refused.result == "FAIL" and "give at least two rows with `answer`" in refused.details[0]


# The texts themselves


def test_hostile_texts_are_what_they_say(tmp_path: Path) -> None:
    texts = fuzz_texts(str(tmp_path / "canary"))
    longest = [len(text) for name, text in texts.items() if name.startswith(("one long", "many", "a long"))]
    assert len(longest) == 9 and min(longest) > 0.99 * LONG
    assert sum(str(tmp_path) in text for text in texts.values()) >= 7
    exec(texts["Python in the text"])
    assert (tmp_path / "canary").exists(), "the canary must be one that Python would write"


def test_tricks_are_not_honest_answers() -> None:
    for form, write in FORMS.items():
        for row, other in pairwise(ROWS):
            honest = write(gold_of(row, form))
            tricks = answer_tricks(form, row, other)
            assert honest not in tricks.values() and len(set(tricks.values())) >= len(tricks) - 1
    judge = rewards.load("number")
    for row, other in pairwise(ROWS):
        found = judge([rewards.Sample("", text, meta=row) for text in answer_tricks("<answer>", row, other).values()])
        assert {reward.value for reward in found} == {0.0}
    verdicts = rewards.load("format")([rewards.Sample("", text) for text in form_tricks("7").values()])
    assert {reward.value for reward in verdicts} == {0.0}
    assert len({reward.reason for reward in verdicts}) == 5, "every reason for refusing a form is tried"


def test_the_rows_are_right() -> None:
    for row in ROWS:
        assert eval(row["question"]) == int(row["answer"])
        space: dict[str, Any] = {}
        exec(row["code"], space)
        for check in row["test_list"]:
            exec(check, space)
