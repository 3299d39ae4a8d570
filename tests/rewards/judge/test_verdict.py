"""What counts as a verdict, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.judge.verdict import last_verdict, pairs, score, yes_no


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("B is clearer.\n[[B]]", "B"),
        ("[[ A ]]", "A"),
        ("First I took [[A]].\nThen I looked again.\n[[B]]\n", "B"),  # the last line counts
        ("[[A]], yes, [[A]]", "A"),  # said twice
        ("I choose [[A]] over [[B]].", None),  # two things on one line
        ("End with [[A]] if A is better, [[B]] if B is, [[C]] if neither is.", None),  # its instructions
        ("<think>[[A]] it seems</think>\nNo. [[B]]", "B"),
        ("<think>[[A]] it seems</think> I cannot say.", None),
        ("<think>[[A]] it seems", None),  # it never stopped thinking
        ("<think></think><answer>[[7]]</answer>", "7"),
        ("[A]", None),
        ("[[A]", None),
        ("[[[A]]]", "A"),
        ("[[]]", None),
        ("[[A\n]]", None),
        ("", None),
        ("**[[C]]**.", "C"),
    ],
)
def test_the_last_verdict(answer: str, word: str | None) -> None:
    assert last_verdict(answer) == word


@pytest.mark.parametrize(
    ("word", "value"),
    [("A", 1.0), ("b", 0.0), ("C", 0.5), ("D", None), ("A>B", None), ("tie", None), ("AB", None), ("1", None)],
)
def test_a_choice_is_one_of_three(word: str, value: float | None) -> None:
    assert pairs().read(f"[[{word}]]") == value


@pytest.mark.parametrize(("word", "value"), [("YES", 1.0), ("no", 0.0), ("maybe", None), ("C", None)])
def test_yes_or_no(word: str, value: float | None) -> None:
    assert yes_no().read(f"so: [[{word}]]") == value


@pytest.mark.parametrize(
    ("word", "value"),
    [("1", 0.0), ("10", 1.0), ("5.5", 0.5), ("04", 1 / 3), ("0", None), ("11", None), ("10.0001", None),
     ("8/10", None), ("nan", None), ("inf", None), ("1e0", None), ("five", None), ("-3", None), ("\u0667", None)],
)  # fmt: skip
def test_a_score_lies_in_its_scale_and_is_never_moved_there(word: str, value: float | None) -> None:
    assert score(1, 10).read(f"[[{word}]]") == (None if value is None else pytest.approx(value))


def test_a_scale_may_begin_below_zero() -> None:
    assert score(-5, 5).read("[[-5]]") == 0 and score(-5, 5).read("[[0]]") == 0.5


@pytest.mark.parametrize("scale", [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf"))])
def test_what_is_no_scale_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"give the lowest and the highest"):
        score(*scale)


@pytest.mark.parametrize("form", [pairs(), yes_no(), score(1, 10)])
def test_the_sentence_that_asks_for_a_verdict_holds_none(form: object) -> None:
    """Else a judge that only repeats what it was asked would give one."""
    assert form.read(form.ending) is None  # pyright: ignore


@given(st.text(alphabet="[]AB7 \n<>/think", max_size=60))
def test_any_text_has_a_verdict_of_its_form_or_none(text: str) -> None:
    assert pairs().read(text) in (None, 0.0, 0.5, 1.0)
    value = score(1, 10).read(text)
    assert value is None or 0 <= value <= 1


def test_a_long_answer_is_read_in_no_time() -> None:
    assert last_verdict("[[" * 200_000) is None
    assert last_verdict("[[A]]\n" * 100_000) == "A"
