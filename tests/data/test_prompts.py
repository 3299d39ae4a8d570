from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rewards import Sample, load
from rewards.number import extract_answer
from rlkit.data.prompts import fitting, order, rows_for_step, to_demonstrations, to_prompts
from rlkit.data.rows import Row
from rlkit.data.tokenizer import train_tokenizer
from rlkit.types import Demonstration

ROWS = [
    Row(id=f"sums/{i}", question=f"{i} + 5", answer=str(i + 5), solution=f"{i}+5={i + 5}", meta={"answer": str(i + 5)})
    for i in range(400)
]
TOKENIZER = train_tokenizer([f"{row.question} {row.solution}" for row in ROWS], 280)


def foreign_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Another model's tokenizer: word-level, its own template and end token, none of our marks."""
    words = [
        "[UNK]",
        "[END]",
        "think",
        "answer",
        "<",
        ">",
        "</",
        "><",
        "></",
        "Q",
        ":",
        "A",
        "+",
        "=",
        *map(str, range(10)),
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]", chat_template=template
    )


def completion_of(demonstration: Demonstration) -> tuple[int, ...]:
    """The trained tokens, which end the demonstration."""
    [(first, end)] = demonstration.trained
    assert end == len(demonstration.tokens)
    return demonstration.tokens[first:]


def test_a_prompt_is_the_template_and_carries_its_row() -> None:
    prompt = to_prompts(ROWS, TOKENIZER, "", 99)[7]
    assert (prompt.id, prompt.meta) == ("sums/7", {"answer": "12"})
    assert prompt.text == "<bos><|user|>7 + 5<|assistant|>" == TOKENIZER.decode(prompt.tokens)
    template = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "7 + 5"}], add_generation_prompt=True, return_dict=False
    )
    assert list(prompt.tokens) == template


def test_the_instruction_stands_before_the_question() -> None:
    [prompt] = to_prompts(ROWS[:1], TOKENIZER, "Add up.", 99)
    assert prompt.text == "<bos><|user|>Add up.\n0 + 5<|assistant|>"


def test_no_rows_no_prompts() -> None:
    assert to_prompts([], TOKENIZER, "", 9) == () == to_demonstrations([], TOKENIZER, "", 1.0, 0)


def test_a_prompt_that_does_not_fit_is_named_at_the_exact_limit() -> None:
    length = len(to_prompts(ROWS[200:201], TOKENIZER, "", 99)[0].tokens)
    assert to_prompts(ROWS[200:201], TOKENIZER, "", length)
    message = rf"row 'sums/200' has {length} tokens, but only {length - 1} fit.*engine\.max_model_len"
    with pytest.raises(ValueError, match=message):
        to_prompts(ROWS[200:201], TOKENIZER, "", length - 1)


def test_demonstrations_have_the_prompts_tokens_and_end_with_the_end_token() -> None:
    demonstrations = to_demonstrations(ROWS, TOKENIZER, "Add up.", 1.0, 0)
    prompts = to_prompts(ROWS, TOKENIZER, "Add up.", 99)
    for row, prompt, demonstration in zip(ROWS, prompts, demonstrations, strict=True):
        completion = completion_of(demonstration)
        assert (demonstration.id, demonstration.tokens) == (row.id, prompt.tokens + completion)
        text = TOKENIZER.decode(completion)
        assert text == f"<think>{row.solution}</think><answer>{row.answer}</answer><eos>"
        assert extract_answer(TOKENIZER.decode(completion, skip_special_tokens=True)) == row.answer
        assert completion.count(TOKENIZER.eos_token_id) == 1


def test_think_share_is_a_share_chosen_by_seed_and_id_alone() -> None:
    def thoughtful(share: float, seed: int, rows: list[Row] = ROWS) -> set[str]:
        demonstrations = to_demonstrations(rows, TOKENIZER, "", share, seed)
        empty = tuple(TOKENIZER.encode("<think></think>", add_special_tokens=False))
        return {d.id for d in demonstrations if completion_of(d)[:2] != empty}

    assert thoughtful(0.0, 0) == set() and len(thoughtful(1.0, 0)) == 400
    half = thoughtful(0.5, 0)
    assert 160 <= len(half) <= 240  # 200 +- 4 standard deviations of a fair coin
    assert thoughtful(0.25, 0) < half  # a larger share adds thoughts, and takes none away
    assert thoughtful(0.5, 1) != half
    assert thoughtful(0.5, 0, ROWS[::-2]) == half & {row.id for row in ROWS[::-2]}


def test_a_demonstration_that_does_not_fit_is_named() -> None:
    [demonstration] = to_demonstrations(ROWS[:1], TOKENIZER, "", 1.0, 0)
    [(prompt, end)] = demonstration.trained
    assert fitting([demonstration], end, drop=False) == (demonstration,)
    message = rf"row 'sums/0' has {prompt} \+ {end - prompt} tokens, more than .* set data\.too_long=drop"
    with pytest.raises(ValueError, match=message):
        fitting([demonstration], end - 1, drop=False)
    assert fitting([demonstration], end - 1, drop=True) == ()


def test_any_tokenizer_with_a_template_will_do() -> None:
    tokenizer = foreign_tokenizer("Q : {{ messages[0].content }} A :")
    [demonstration] = to_demonstrations(ROWS[3:4], tokenizer, "", 1.0, 0)
    assert tokenizer.convert_ids_to_tokens(list(demonstration.tokens[: demonstration.trained[0][0]])) == [
        "Q",
        ":",
        "3",
        "+",
        "5",
        "A",
        ":",
    ]
    assert demonstration.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in completion_of(demonstration)


def test_a_template_that_opens_the_think_is_not_opened_twice() -> None:
    tokenizer = foreign_tokenizer("Q : {{ messages[0].content }} A : <think>\n")
    [demonstration] = to_demonstrations(ROWS[3:4], tokenizer, "", 1.0, 0)
    tokens = tokenizer.convert_ids_to_tokens(list(completion_of(demonstration)))
    assert tokens == ["3", "+", "5", "=", "8", "</", "think", "><", "answer", ">", "8", "</", "answer", ">", "[END]"]


@pytest.mark.parametrize(
    ("solution", "think"),
    [
        ("3+5=8", "3+5=8"),
        ("<think>3+5=8</think>", "3+5=8"),
        ("<think>\n3+5=8\n</think>\n\n", "3+5=8"),
        ("<think>3+5=8</think><answer>8</answer>", "3+5=8"),
        ("<think>3+5=8</think>\n<answer>\n8\n</answer>\n", "3+5=8"),
        ("3+5=8</think>", "3+5=8"),
        ("3+5=8</think><answer>8</answer><eos>", "3+5=8"),
        ("<think>3+5=8</think>\nSo 8.", "3+5=8\nSo 8."),
        ("3+5=8<eos>", "3+5=8"),
        ("<answer>7</answer> no, <answer>8</answer>", "7 no,"),
        ("<think><think>3+5=8</think></think>", "3+5=8"),
        ("<answer>8</answer>", "8"),
        ("  indented\n", "  indented\n"),
        ("", ""),
    ],
)
def test_marks_of_a_solution_are_not_doubled(solution: str, think: str) -> None:
    """Solutions of reasoning models bring <think> along, and <think><think> was taught."""
    row = replace(ROWS[3], solution=solution)
    [demonstration] = to_demonstrations([row], TOKENIZER, "", 1.0, 0)
    text = TOKENIZER.decode(completion_of(demonstration))
    assert text == f"<think>{think}</think><answer>8</answer><eos>"
    with closing(load("format")) as judge:
        completion = text.removesuffix("<eos>")
        assert judge([Sample("", completion, meta=dict(row.meta))])[0].value == 1


@pytest.mark.parametrize(
    "answer", ["<answer>8</answer>", " <answer> 8 </answer>\n", "8<eos>", "<answer>8</answer><eos>"]
)
def test_marks_of_an_answer_are_not_doubled(answer: str) -> None:
    [demonstration] = to_demonstrations([replace(ROWS[3], answer=answer)], TOKENIZER, "", 0.0, 0)
    assert TOKENIZER.decode(completion_of(demonstration)) == "<think></think><answer>8</answer><eos>"


@pytest.mark.parametrize("answer", ["", " ", "\n\t", "<answer></answer>", "<answer> </answer>", "<eos>"])
def test_a_demonstration_of_nothing_is_refused(answer: str) -> None:
    """`data.answer_column=` taught <answer></answer>."""
    rows = [ROWS[0], replace(ROWS[3], answer=answer)]
    message = r"row 'sums/3' would teach an empty answer; set data\.answer_column to the column that holds the answers"
    with pytest.raises(ValueError, match=message):
        to_demonstrations(rows, TOKENIZER, "", 1.0, 0)
    assert len(to_prompts(rows, TOKENIZER, "", 99)) == 2, "GRPO needs none"


@pytest.mark.parametrize(
    "change", [{"solution": "a<eos>b"}, {"answer": "1<eos>2"}, {"solution": "<eos>"}, {"answer": "<eos>8"}]
)
def test_an_end_token_in_the_middle_is_named(change: dict[str, str]) -> None:
    row = replace(ROWS[3], **change)
    if change == {"solution": "<eos>"}:
        assert to_demonstrations([row], TOKENIZER, "", 1.0, 0)[0].tokens.count(TOKENIZER.eos_token_id) == 1
        return
    with pytest.raises(ValueError, match=r"row 'sums/3' holds the end token '<eos>' in its middle"):
        to_demonstrations([row], TOKENIZER, "", 1.0, 0)


def test_tokenizers_without_template_or_end_token_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has no chat template; add chat_template\.jinja"):
        to_prompts(ROWS, foreign_tokenizer(None), "", 99)
    tokenizer = foreign_tokenizer("{{ messages[0].content }}")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end token"):
        to_demonstrations(ROWS, tokenizer, "", 1.0, 0)


def test_order_is_a_permutation_that_changes_with_seed_and_epoch() -> None:
    orders = {order(50, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9 and all(sorted(one) == list(range(50)) for one in orders)
    first = order(50, 0, 0)
    order.cache_clear()
    assert order(50, 0, 0) == first


def test_the_order_of_a_seed_never_changes() -> None:
    """Golden: a run resumed under another release must see the same rows; a change belongs in the changelog."""
    assert order(10, 0, 0) == (5, 7, 6, 8, 3, 9, 4, 2, 0, 1)


@pytest.mark.parametrize(("num_rows", "per_step"), [(10, 3), (10, 10), (7, 20), (12, 4), (1, 2)])
def test_every_row_comes_once_an_epoch_across_step_borders(num_rows: int, per_step: int) -> None:
    places = [row for step in range(3 * num_rows) for row in rows_for_step(num_rows, per_step, step, seed=5)]
    assert len(places) == 3 * num_rows * per_step
    for epoch in range(3 * per_step):
        assert tuple(places[epoch * num_rows : (epoch + 1) * num_rows]) == order(num_rows, 5, epoch)
    assert set(Counter(places).values()) == {3 * per_step}
