"""Comparisons of folders that differ in suites, rows and samples, and the exact test where units get too fine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.evaluation.compare import compare, contest
from rlkit.evaluation.estimates import FINEST, Vote, majority, paired_p, pass_at_k, whole_differences


def suite_of(outcomes: object, reward: str = "math", problems: str = "p") -> dict[str, object]:
    return {"outcomes": outcomes, "settings": {"problems": problems}, "reward": reward, "reward_mark": reward}


def written(folder: Path, **suites: object) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"suites": suites}))
    return folder


def test_suites_that_not_all_have_are_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = suite_of({"x": [True]})
    a = written(tmp_path / "a", one=same, two=same, three=suite_of({"x": [False]}))
    b, c = written(tmp_path / "b", three=same, one=same), written(tmp_path / "c", four=same, one=same, three=same)
    compare([a, b, c], tmp_path / "out")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(one["suite"], Path(one["folder"]).name) for one in found["contests"]] == [
        ("one", "b"), ("one", "c"), ("three", "b"), ("three", "c"),
    ]  # fmt: skip
    assert found["left_out"] == ["two", "four"]
    assert "left out, not in all: two, four" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no suite is in all of these.*a has one, two, three; .*d has ; run one on"):
        compare([a, written(tmp_path / "d")], tmp_path / "out")


def test_the_second_of_three_is_named_where_it_differs(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", own=suite_of({"x": [True]})), written(tmp_path / "b", own=suite_of({"x": [True]}))
    for place, (odd, words) in enumerate((
        (suite_of({"x": [True]}, problems="q"), "have other problems under the name own; rename one of the files"),
        (suite_of({"x": [True]}, reward="number"), "was judged by math in .*/a and by number in .*; judge both by one"),
        (suite_of({"y": [True]}), "have no problem of suite own in common; run them with one size"),
    )):  # fmt: skip
        with pytest.raises(UserError, match=words):
            compare([a, b, written(tmp_path / f"odd{place}", own=odd)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_under_two_names_is_given_twice(tmp_path: Path) -> None:
    a = written(tmp_path / "a", own=suite_of({"x": [True]}))
    (tmp_path / "link").symlink_to(a)
    with pytest.raises(UserError, match="is given twice; give each evaluation once"):
        compare([a, tmp_path / "link"], tmp_path / "out")


def test_numbers_of_samples_without_a_common_measure_can_be_compared() -> None:
    """A run that was ended early leaves each problem another number of samples; their lcm is above 10^27."""
    counts = range(1, 65)
    first = {str(n): [False] * n for n in counts}
    this = {str(n): [True] + [False] * (n - 1) for n in counts}
    found = contest("own", "f", suite_of(first), suite_of(this))
    assert (found.problems, found.better, found.worse, found.samples) == (64, 64, 0, (1, 1))
    assert found.p == pytest.approx(2 / 2**64) and found.p > 0
    mirrored = contest("own", "f", suite_of(this), suite_of(first))
    assert (mirrored.better, mirrored.worse, mirrored.p) == (0, 64, found.p)


def test_rounding_treats_both_signs_alike_and_stays_away_where_it_can() -> None:
    first, second = [[True] * 2 + [False] * 9, [False] * 13], [[True] + [False] * 16, [True] + [False] * 18]
    there, back = whole_differences(first, second), whole_differences(second, first)
    assert there == [-d for d in back] == [round(FINEST * (1 / 17 - 2 / 11)), round(FINEST / 19)]
    assert whole_differences([[True, False, False]], [[False] * 4]) == [-4], "1/3 in twelfths"
    assert paired_p(there) == paired_p(back) == 1.0


@pytest.mark.parametrize(
    ("right", "others", "worth"),
    [(2, "aabb", 1 / 3), (2, "aab", 1 / 2), (1, "abcd", 1 / 5), (0, "aab", 0), (3, "aaab", 1 / 2), (0, "", 0),
     (1, "", 1), (2, "aaa", 0), (3, "aab", 1)],
)  # fmt: skip
def test_ties_by_hand(right: int, others: str, worth: float) -> None:
    votes = [Vote(answer="7", correct=True)] * right + [Vote(answer=text, correct=False) for text in others]
    for ballot in (votes, votes[::-1], [*votes, Vote(answer=None, correct=False)]):
        assert majority(ballot, str.__eq__) == pytest.approx(worth)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_pass_at_k_of_no_sample_or_of_too_many_is_a_mistake(k: int) -> None:
    with pytest.raises(AssertionError, match=f"pass@{k} needs"):
        pass_at_k(3, 1, k)
