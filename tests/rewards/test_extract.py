from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.extract import Answer, extract, extract_answer, last_box, last_boxed, thought_end

BOX = r"\boxed{7}"


@pytest.mark.parametrize(
    ("completion", "text", "place"),
    [
        (BOX, "7", "boxed"),
        (r"\fbox{7}", "7", "boxed"),
        (r"\boxed {7}", "7", "boxed"),
        ("\\boxed{\n 7\n}", "7", "boxed"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}", "boxed"),
        (r"\boxed{6}, no: \boxed{7}", "7", "boxed"),
        (r"\boxed{\frac{1}{2}} and {more}", r"\frac{1}{2}", "boxed"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
        (r"\boxed{1\\{2}}", r"1\\{2}", "boxed"),
        (r"\boxed{6} then \boxed{7", "6", "boxed"),
        (r"\boxed{6 \boxed{7}", "7", "boxed"),
        (r"{ \boxed{7}", "7", "boxed"),
        (r"} \boxed{7}", "7", "boxed"),
        (r"\boxed{}", "", "boxed"),
        (r"\boxed{7} \boxed{}", "", "boxed"),
        (r"\boxed{7} <answer>8</answer>", "8", "answer"),
        (r"<answer>8</answer> \boxed{7}", "8", "answer"),
        (r"<answer>It is \boxed{7}</answer>", "7", "boxed"),
        ("<answer>so\n#### 7</answer>", "7", "hashes"),
        (r"\boxed{7} <answer></answer>", "", "answer"),
        ("<answer>7</answer> <answer>8", "7", "answer"),
        ("#### 6\n#### 7", "7", "hashes"),
        ("####7", "7", "hashes"),
        ("#### 7 \nso there", "7", "hashes"),
        (r"#### 6 \boxed{7}", "7", "boxed"),
        (r"<think>\boxed{6}</think>#### 7", "7", "hashes"),
        (r"\boxed{6}</think>\boxed{7}", "7", "boxed"),
        ("7", None, None),
        ("The answer is 7.", None, None),
        (r"<think>\boxed{7}", None, None),
        (r"<think>\boxed{7}</think>", None, None),
        (r"<think>a</think>\boxed{7}<think>", None, None),
        (r"\boxed 7", None, None),
        (r"\boxed7", None, None),
        (r"\\boxed{7}", None, None),
        (r"boxed{7}", None, None),
        ("<answer>7", None, None),
        ("7</answer>", None, None),
    ],
)
def test_strict(completion: str, text: str | None, place: str | None) -> None:
    answer = extract(completion)
    assert (answer and answer.text, answer and answer.place) == (text, place)
    if answer:
        assert completion[answer.start :].startswith(answer.text)


@pytest.mark.parametrize(
    ("completion", "text", "place"),
    [
        ("The answer is 7.", "7", "phrase"),
        ("The answer is 7.5.", "7.5", "phrase"),
        ("Final answer: 7", "7", "phrase"),
        ("**Final Answer:** 7", "7", "phrase"),
        ("The answer is $x = 7$. I hope it is correct.", "x = 7", "phrase"),
        ("The final answer is \\(7\\).", "7", "phrase"),
        ("The answer is:\n\\[\n7\n\\]", "7", "phrase"),
        ("The answer is **7**.", "7", "phrase"),
        ("My answer to this question is 7 cm.", "7 cm", "phrase"),
        ("The answer is 6? No, the answer is 7.", "7", "phrase"),
        ("ANSWER = 7", "7", "phrase"),
        ("Answer\uff1a7", "7", "phrase"),
        ("\u7b54\u6848\u662f7\u3002", "7", "phrase"),
        ("\u56e0\u6b64\uff0c\u7b54\u6848\u4e3a\uff1a$7$\u5143\u3002", "7", "phrase"),
        ("\u6700\u7ec8\u7b54\u6848\uff1a7\u62168", "7\u62168", "phrase"),
        ("**\u7b54\u6848**\uff1a7", "7", "phrase"),
        ("\u89e3\u6cd5\u5982\u4e0b\n\u7b54\uff1a7\u5143", "7\u5143", "phrase"),
        ("\u7b54\u6848\u4e0d\u77e5\u9053", None, None),
        ("so\n7", "7", "line"),
        ("so\n  $7$ \n", "7", "line"),
        ("so\n$1,234.50", "$1,234.50", "line"),
        ("so\n**7**", "7", "line"),
        ("we get 7", None, None),
        ("7 is\nright", None, None),
        ("answers: none", None, None),
        (r"\boxed{6} The answer is 7.", "6", "boxed"),
        ("<think>The answer is 7.", None, None),
        ("The answer is 6." + " " * 3000 + "x", None, None),
    ],
)
def test_lenient(completion: str, text: str | None, place: str | None) -> None:
    answer = extract(completion, extraction="lenient")
    assert (answer and answer.text, answer and answer.place) == (text, place)


def test_a_prompt_that_opened_a_thought() -> None:
    assert extract(BOX, thinking=True) is None
    assert extract("so</think>" + BOX, thinking=True) == Answer(text="7", place="boxed", start=17)
    assert thought_end("a</think>b", thinking=True) == 9
    assert thought_end("ab") == 0
    assert extract_answer("<answer>7</answer>", thinking=True) is None


@pytest.mark.parametrize(
    ("completion", "text", "place"),
    [
        ("so it is $9$.", "9", "last"),
        (r"Then we get \frac{10}{9}", r"\frac{10}{9}", "last"),
        (r"we get x = 2\pi.", r"x = 2\pi", "last"),
        (r"hence \(x^2+1\), as claimed", "x^2+1", "last"),
        (r"first $1$, then \[ \frac{1}{2} \]", r"\frac{1}{2}", "last"),
        ("it costs $5 and $7", "$7", "last"),
        ("so it is 1,234.50 dollars", "1,234.50", "last"),
        ("the chance is about 50%", "50%", "last"),
        ("which makes -3/4.", "-3/4", "last"),
        ("16 - 3 = 13", "16 - 3 = 13", "last"),
        ("so **9**.", "9", "last"),
        ("It is $9$, which took 2 steps", "2", "last"),  # the weakest of the three: nothing says what the answer is
        (r"\boxed{7} and then 8", "7", "boxed"),
        ("<answer>7</answer> and then 8", "7", "answer"),
        ("The answer is 7. I checked it 2 times.", "7", "phrase"),
        ("in 2 steps\n7", "7", "line"),
        ("**Result: 7**", "7", "last"),
        ("Answer:\n\n7", "7", "phrase"),
        ("<think>it is 7", None, None),
        ("<think>it is 7</think>", None, None),
        ("nothing at all", None, None),
        ("let x be", None, None),
    ],
)
def test_last(completion: str, text: str | None, place: str | None) -> None:
    answer = extract(completion, extraction="last")
    assert (answer and answer.text, answer and answer.place) == (text, place)
    assert extract(completion) is None or place in ("answer", "boxed")


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so $\boxed{2}$ or $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{a \boxed{b}}", r"a \boxed{b}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{ 7 }", "7"),
        (r"the answer is $\boxed 5$.", "5"),
        (r"\boxed{3} then \boxed{4", "3"),
        (r"\boxed{3} then \boxed 5", "5"),
        (r"\boxed 5 then \boxed{3}", "3"),
        (r"\\boxed 5", None),
        ("nothing", None),
    ],
)
def test_what_a_solution_boxes_last(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed
    span = last_box(text)
    assert span is None or boxed == "5" or text[slice(*span)].strip() == boxed


@pytest.mark.parametrize(
    "text",
    [
        *(
            "{",
            "}",
            "\\",
            "#",
            "<",
            "$",
            "(",
            " ",
            "\n",
            "\\boxed{",
            "\\boxed",
            "<answer>",
            "</answer>",
            "<think>",
            "####",
        ),
        *(
            "</think>",
            "answer ",
            "answer is ",
            "answer answer is",
            "the final answer ",
            "**",
            "\\{",
            "7 ",
            "7\n",
            "$$7",
        ),
    ],
)
def test_200_kilobytes_take_linear_time(text: str) -> None:
    def seconds(length: int) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()  # a busy machine adds nothing to it
            extract((text * length)[:length], extraction="last")
            times.append(time.process_time() - start)
        return min(times)

    # Ten times the text may take ten times the time; quadratic time would be a hundred times.
    assert seconds(200_000) < 30 * seconds(20_000) + 0.02


@given(st.text(alphabet="\\{}boxed<>/answerthink#$7 \n.:*()[]", max_size=200), st.booleans())
def test_any_text_is_read(text: str, thinking: bool) -> None:
    for extraction in ("strict", "lenient", "last"):
        answer = extract(text, thinking, extraction)
        assert answer is None or text[answer.start :].startswith(answer.text)


@given(st.text(alphabet="ab\\{} ", max_size=60))
def test_a_balanced_box_is_found_whatever_is_around(text: str) -> None:
    assert last_box(r"\boxed{7}" + text.replace("\\", "")) == (7, 8)
    before = text + " "
    box = last_box(before + r"\boxed{7}")
    assert box is not None and (before + r"\boxed{7}")[slice(*box)] == "7"
