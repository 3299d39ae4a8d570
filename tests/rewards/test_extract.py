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
        (r"\boxed 7", "7", "boxed"),
        (r"\boxed7", "7", "boxed"),
        (r"$\boxed 7$", "7", "boxed"),
        (r"\boxed 3.5.", "3.5", "boxed"),
        (r"\boxed -1,234", "-1,234", "boxed"),
        (r"\boxed{6} so \boxed 7", "7", "boxed"),
        (r"\boxed 6 so \boxed{7}", "7", "boxed"),
        (r"\boxed{\boxed 7}", r"\boxed 7", "boxed"),
        (r"\boxed 7 cm", "7", "boxed"),
        (r"\boxed 7\pi", None, None),
        (r"\boxed 7 \times 2", None, None),
        (r"\boxed 7 + 2", None, None),
        (r"\boxed 7^2", "7^2", "boxed"),
        (r"\boxed{7}, written in \boxed and then", "7", "boxed"),
        (r"it goes in \boxed.", None, None),
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
        ("see sin(x) or (which is odd)", None, None),
        ("the area is 5 cm^2.", "5 cm^2", "last"),
        ("then (5), b", "(5)", "last"),
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


FORMULAS = [
    *(r"x \geq 5", r"2 \pm 3", r"3 \times 5", r"4.2 \times 10^{-4}", "4.2 x 10^-4", r"\{1, 2\}", r"\sqrt[3]{2}", "3xy"),
    *(
        "(0, 5]",
        "(3, -4)",
        "(x+1)(x-2)",
        "2(3(4(5)+1)+1)",
        r"\left(0, 5\right]",
        "(1, 2), (3, 4)",
        "[1, 2)",
        "(1, (2))",
    ),
    *(
        "\u03c0/2",
        "2\u221a3",
        "\u221a2",
        "25\u03c0",
        "3 \u2264 x \u2264 5",
        "\u00bd",
        "2 \u221a3",
        "10\u207b\u2074",
        "5\u00b2",
    ),
    *(
        "x\u2081 = 3",
        "\u22125",
        "\u00b15",
        "2 \u00d7 3",
        "a \u2265 -5",
        "\u221e",
        "30\u00b0",
        "\u221b2",
        "[1, 2) \u222a (3, 4]",
    ),
    *(
        "sin(5)",
        "sin 5",
        "log_2 5",
        "f(5) = 6",
        "|x| = 5",
        r"x \in (0, 1)",
        r"x \ne -\frac{1}{2}",
        r"x \ne - 5",
        "x^-2",
    ),
    *(
        r"\frac 1 2",
        r"5\text{ cm}",
        r"5 \text{ cm}",
        "5 cm^2",
        "5cm^2",
        "2 pi",
        r"\pi \approx 3.14",
        r"30^\circ",
        "3:4",
    ),
    *(r"3 \leq x < 5", "24\u5206\u4e4b7", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\sqrt 2", r"2 \cdot 3", "x < -5"),
]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("frame", ["so we find {}", "so we find {}.", "This comes to {}, as it should.", "**{}**"])
def test_last_takes_a_formula_whole(formula: str, frame: str) -> None:
    answer = extract(frame.format(formula), extraction="last")
    assert answer and answer.text == formula


@pytest.mark.parametrize("text", ["so it is ab/5", "in cm^2", "(see above)", "x^", "sqrt(see above)"])
def test_last_finds_no_part_of_a_formula(text: str) -> None:
    assert extract(text, extraction="last") is None


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


@pytest.mark.slow
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
