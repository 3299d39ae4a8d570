"""Comparisons of folders that differ in suites, rows and samples, and the exact test where units get too fine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards import RewardError
from rewards.judge.endpoint import Endpoint
from rewards.judge.rubric import read_rubric
from rlkit.cli.eval import main
from rlkit.distill.card import _cell
from rlkit.distill.decontamination import ExamQuestions, n_for
from rlkit.distill.duplicates import are_near, shingles
from rlkit.distill.words import num_letters_words, numbers_of, words_of
from rlkit.errors import UserError
from rlkit.evaluation.compare import compare, contest
from rlkit.evaluation.estimates import FINEST, Vote, majority, paired_p, pass_at_k, whole_differences
from rlkit.run.lock import Lock


def suite_of(outcomes: object, reward: str = "math", problems: str = "p") -> dict[str, object]:
    return {"outcomes": outcomes, "settings": {"problems": problems}, "reward": reward}


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


@pytest.mark.parametrize("text", ["[1]", "null", "reward: 7", "a: b: c", "seed: 0", "\x00", ""])
def test_a_saved_configuration_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is no configuration of an evaluation \(.*; correct output_dir"):
        main(["--rescore", "number", f"output_dir={tmp_path}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rescore"], "--rescore needs a reward: a name, package.module:function or file.py:function"),
        (["--rescore="], "--rescore needs a reward"),
        (["--rescore=math", "samples=2"], "samples: without MODEL, --rescore takes output_dir=DIR alone"),
        (["a", "b"], "takes one MODEL, not a and b; suites are given as suite=a,b"),
        (["suite=gsm8k"], "needs the folder of a model"),
        (["compare"], "needs two folders of evaluations, or more"),
        (["compare", "a", "b", "samples=2"], "samples is no setting of 'rlkit eval compare'; there is output_dir=DIR"),
    ],
)
def test_words_that_make_no_command(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        main(words)
    assert said in str(refused.value)


def test_a_folder_that_is_held_is_not_evaluated_by_another(tmp_path: Path) -> None:
    from rlkit.evaluation.run import opened

    held = Lock(tmp_path)
    with pytest.raises(UserError, match="is in use by another run .*wait for it, end it"), opened(tmp_path):
        pytest.fail("two are in one folder")
    held.release()
    with opened(tmp_path):
        pass
    with pytest.raises(SystemExit) as left, opened(tmp_path):
        raise KeyboardInterrupt
    assert left.value.code == 130
    with opened(tmp_path):  # whatever ended it has let go
        pass


EXAMS = ["hello", "true love", "what is love", "name all prime numbers", "name all prime numbers now", "7", "7 apples",
         "x ^ 2", "compute 3 + 4", "find 12 of the 30"]  # fmt: skip
TEXTS = ["Hello!", "hello 7", "say hello to all", "love true", "true love", "What is love?", "what is not love",
         "please name all prime numbers now", "name all prime numbers below 9", "7", "7 7", "apples 7", "7 apples 8",
         "x^2", "x^2 + x^2", "Compute 3 + 4, please", "compute 3 + 5", "find 12 of the 30 and 5", "", "30 12"]  # fmt: skip


@pytest.mark.parametrize("exam", EXAMS)
def test_short_items_are_found_as_sets_of_runs_say(exam: str) -> None:
    """Items of one to five words against the definition, written with tuples and sets."""
    tests, item = ExamQuestions([("t", exam)], 0.7), words_of(exam)
    n = n_for(len(item))

    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    hits = []
    for text in TEXTS:
        words = words_of(text)
        share = len(runs(item) & runs(words)) / len(runs(item))
        ours, theirs = sorted(numbers_of(item)), sorted(numbers_of(words))
        enough = all(theirs.count(number) >= ours.count(number) for number in ours)
        expected = share >= 0.7 and (ours == theirs if num_letters_words(item) < 4 else enough)
        assert (tests.found_in(words) is not None) == expected, text
        hits.append(expected)
    assert not all(hits)


def test_two_words_are_a_pair_and_their_order_counts() -> None:
    assert not are_near("no yes", "yes no", 1.0) and are_near("no yes", "No, yes!", 1.0)
    assert [len(shingles(words)) for words in ([], ["a"], ["a", "b"], ["a", "b", "a", "b"])] == [0, 1, 1, 2]


def test_a_cell_holds_no_end_of_itself() -> None:
    assert _cell("a|b\n c\t\x0b d") == "a\\|b c d"


@pytest.mark.parametrize("url", ["http://[bad", "http://h:port/v1", "http://h:99999/v1", "http://h/\x00", "http://h /v1",
                                 "http://", "h:8000", "ftp://h/v1", "http://h:0/v1", "//h/v1"])  # fmt: skip
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(RewardError, match="is no address; give one as http://127"):
        Endpoint(url, model="m", key_env="", body={}, concurrency=1, tries=1, timeout=1)


@pytest.mark.parametrize("name", ["~nobody_of_this_name/r.md", "none/r.txt", "a\x00b.md"])
def test_a_rubric_that_cannot_be_found_is_refused(name: str) -> None:
    with pytest.raises(RewardError, match=r"cannot be read \(.*\); correct the path"):
        read_rubric(name)
