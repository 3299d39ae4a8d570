"""Stored lines under attack: cut at any byte, written by two, and asked for again where a verdict is owed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkit.errors import UserError
from rlkit.evaluation.answering import as_group, as_verdict, keys_of, not_drawn, not_judged
from rlkit.evaluation.exams import Exam, fingerprint
from rlkit.evaluation.measure import measure, read_results
from rlkit.evaluation.records import (
    Asked,
    Completion,
    Journal,
    Record,
    Verdict,
    begin_life,
    check_settings,
    read_settings,
)
from rlkit.evaluation.records import reward_mark as mark_of
from rlkit.types import Prompt, Sampling, Score
from tests.evaluation.test_measure import MATH, SETTINGS, filled, suite
from tests.evaluation.test_records import GOOD, ONE


def test_a_last_line_cut_at_any_byte_is_dropped_and_can_be_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    Journal(path, Completion).append([ONE])
    first = path.read_bytes()
    second = replace(ONE, sample=1, completion="a,b\n\x00 \U0001f600 \udfff,")
    Journal(path, Completion).append([second])
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        kept = [ONE, second][: whole[:end].count(b"\n")]
        journal = Journal(path, Completion)
        assert journal.lines == kept, end
        assert path.read_bytes() == (whole if len(kept) == 2 else first if kept else b"")
        if end % 50 == 0 and len(kept) < 2:
            journal.append([ONE, second][len(kept) :])
            assert path.read_bytes() == whole


def test_a_torn_end_of_zeros_is_dropped(tmp_path: Path) -> None:
    """What some file systems leave of a line after a loss of power."""
    path = tmp_path / "own.jsonl"
    Journal(path, Verdict).append([GOOD])
    with path.open("ab") as file:
        file.write(b"\0" * 300)
    assert Journal(path, Verdict).lines == [GOOD]
    assert Journal(path, Verdict).lines == [GOOD] and b"\0" not in path.read_bytes()


def test_lines_of_two_writers_stay_whole(tmp_path: Path) -> None:
    """The lock keeps evaluations apart; where there is none, what both wrote can be read."""
    path = tmp_path / "own.jsonl"
    one, other = Journal(path, Completion), Journal(path, Completion)
    one.append([replace(ONE, life=1)])
    other.append([replace(ONE, life=2), replace(ONE, life=2, sample=1)])
    one.append([replace(ONE, life=1, sample=2)])
    assert [(line.life, line.sample) for line in Journal(path, Completion).lines] == [(1, 0), (2, 0), (2, 1), (1, 2)]


@pytest.mark.parametrize(
    "line", ['{"tokens": null}', '{"tokens": 7}', "7", '"text"', "null", "[]", "", "NaN", '{"row": 1, "row": 2}']
)
def test_each_line_that_is_none_is_refused_with_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"own\.jsonl, line 1, cannot be read \(.*\); remove the line"):
        Journal(path, Completion)
    assert path.read_text() == f"{line}\n", "nothing is thrown away"


def exam(number: int, **changes: Any) -> Exam:
    of = suite(number)
    prompts = tuple(Prompt(id=row.id, tokens=(1,), text=row.question, meta=row.meta) for row in of.rows)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=4, seed=0)
    return Exam(suite=of, prompts=prompts, sampling=sampling, settings={**SETTINGS, **changes}, shortened=False)


def test_every_changed_setting_is_named_and_a_new_suite_is_welcome(tmp_path: Path) -> None:
    check_settings(tmp_path, [exam(2)])
    assert begin_life(tmp_path, [exam(2)], {"gsm8k": Asked(suite="gsm8k", samples=4, size=2)}) == 0
    check_settings(tmp_path, [exam(2), exam(7)])  # what decides a completion is the same
    for changes, words in (
        ({"seed": 1}, r"with other settings: seed \(seed was 0, now 1\); use another output_dir, or the settings as"),
        (
            {"seed": 1, "sampling.temperature": 1},
            r"settings: sampling.temperature, seed \(sampling.temperature was 0.6",
        ),
        ({"new": 1}, r"\(new was None, now 1\)"),
        ({"seed": "0"}, r"\(seed was 0, now '0'\)"),
    ):
        with pytest.raises(UserError, match=words):
            check_settings(tmp_path, [exam(2, **changes)])
    other = replace(exam(2, seed=5), suite=suite(2, "mbpp"))
    check_settings(tmp_path, [other])
    assert begin_life(tmp_path, [other], {}) == 1
    stored = read_settings(tmp_path)
    assert stored["asked"] == {"gsm8k": Asked(suite="gsm8k", samples=4, size=2)}
    assert list(stored["suites"]) == ["gsm8k", "mbpp"] and len(stored["lives"]) == 2
    assert exam(2).fingerprint == exam(9).fingerprint == fingerprint(dict(reversed(SETTINGS.items())))
    assert exam(2).fingerprint != exam(2, seed=1).fingerprint


@pytest.mark.parametrize(
    "text",
    ['{"suites": {"own": 7}, "lives": []}', '{"suites": [], "lives": []}', '{"suites": {}, "lives": [7]}', "\ufeff{}",
     '{"suites": {}, "lives": 7}', '{"suites": {"own": null}, "lives": []}', "",
     '{"suites": {}, "lives": [], "asked": {"own": {}}}'],
)  # fmt: skip
def test_settings_of_another_shape_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UserError, match=r"settings\.json cannot be read \(.*\); mend it, or use another output_dir"):
        read_settings(tmp_path)
    assert (tmp_path / "settings.json").read_text() == text


def test_keys_count_problems_first_and_what_is_there_is_not_drawn(tmp_path: Path) -> None:
    assert keys_of(["a", "b"], 2) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert keys_of([], 3) == keys_of(["a"], 0) == []
    record = filled(tmp_path, suite(2), {"gsm8k/0": ["0", "1"], "gsm8k/1": ["2"]})
    assert not_drawn(record, keys_of(["gsm8k/0", "gsm8k/1"], 3)) == [("gsm8k/0", 2), ("gsm8k/1", 1), ("gsm8k/1", 2)]
    assert not_drawn(record, []) == []


def test_a_masked_verdict_is_judged_again_and_the_new_one_counts(tmp_path: Path) -> None:
    """Sample 0 is right, 1 was lost with its machine, 2 has a gold that cannot be read: only 1 is asked for again."""
    of = suite(1)
    record = filled(tmp_path, of, {"gsm8k/0": ["0", "!", "?"]})
    asked = keys_of(["gsm8k/0"], 4)
    [again] = not_judged(of, record, asked)
    assert (again.row, again.sample) == ("gsm8k/0", 1)
    before = measure(of, record, asked, SETTINGS)
    assert (before.unjudged, before.no_verdict, before.missing) == (1, 2, 1)
    assert before.outcomes == {"gsm8k/0": [True, None, None]}
    [late] = not_judged(replace(of, reward=replace(MATH, fn="number")), record, asked)[1:2]
    assert late.sample == 1, "another reward has judged none of the three"
    verdict = Verdict(row="gsm8k/0", sample=1, reward=mark_of(MATH), value=1.0, correct=True, reason="correct",
                      parts={}, seconds=0.0)  # fmt: skip
    record.add_verdicts([verdict])
    assert not_judged(of, record, asked) == []
    after = measure(of, Record(tmp_path, of.name), asked, SETTINGS)
    assert (after.unjudged, after.no_verdict, after.estimates["pass@1"].value) == (0, 1, pytest.approx(2 / 3))
    record.add_verdicts([replace(verdict, value=None, correct=False, reason="deadline")])
    assert len(not_judged(of, record, asked)) == 1, "the later one counts, also where it is none"


class Told:
    """Verdicts that are there."""

    def __init__(self, *scores: Score) -> None:
        self.scores = scores

    def result(self) -> tuple[Score, ...]:
        return self.scores


def test_a_completion_is_judged_with_the_columns_of_its_row(tmp_path: Path) -> None:
    of = suite(12)
    line = replace(ONE, row="gsm8k/11", sample=3)
    group = as_group(line, of)
    assert (group.prompt.id, group.prompt.meta) == ("gsm8k/11#3", {"answer": "22"})
    [rollout] = group.rollouts
    assert (rollout.text, rollout.tokens, rollout.seed) == (line.completion, line.tokens, line.seed)
    score = Score(value=0.5, reason="partial: 1 of 2", parts={"a": 1.0}, seconds=2.0)
    verdict = as_verdict(line, Told(score), "m")  # pyright: ignore
    assert (verdict.value, verdict.correct, verdict.kind, verdict.parts) == (0.5, True, "partial", {"a": 1.0})
    with pytest.raises(ValueError, match="unpack"):
        as_verdict(line, Told(score, score), "m")  # pyright: ignore


@pytest.mark.parametrize(
    ("suite_of", "words"),
    [
        ({"outcomes": {}}, "settings"),
        ({"outcomes": {"a": []}, "settings": {"problems": "p"}, "reward": "m"}, "problems without samples"),
        ({"outcomes": [], "settings": {"problems": "p"}, "reward": "m"}, "attribute"),
        ({"outcomes": {}, "settings": {}, "reward": "m"}, "problems"),
        ({"outcomes": {}, "settings": {"problems": "p"}}, "reward"),
        ([], "list"),
        (None, "NoneType"),
    ],
)
def test_results_of_another_shape_are_refused(suite_of: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"suites": {"own": suite_of}}))
    with pytest.raises(UserError, match=rf"is no result of an evaluation \(.*{words}.*\); give the output_dir of one"):
        read_results(tmp_path)
