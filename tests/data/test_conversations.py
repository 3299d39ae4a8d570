"""Token ids and trained tokens of conversations, against transformers' own marks and against texts written by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlkit.data.conversations import ConversationEncoder, read_conversation
from rlkit.data.tokenizer import CHAT_TEMPLATE
from rlkit.types import Demonstration
from tests.data.templates import CHATML, DROPPING, MARKED, OPENING, PARTS, TEMPLATES, chat, rendered, speaking


def shown(tokenizer: PreTrainedTokenizerFast, messages: Any) -> tuple[Demonstration, ...]:
    return ConversationEncoder(tokenizer, ())(read_conversation("chat/0", messages, "messages"))


def mask(demonstration: Demonstration) -> list[int]:
    found = [0] * len(demonstration.tokens)
    for first, end in demonstration.trained:
        found[first:end] = [1] * (end - first)
    return found


def pieces(tokenizer: PreTrainedTokenizerFast, demonstration: Demonstration) -> list[tuple[str, bool]]:
    """The text in runs of trained and not trained tokens."""
    edges = [0, *(edge for span in demonstration.trained for edge in span), len(demonstration.tokens)]
    runs = [(tokenizer.decode(demonstration.tokens[a:b]), i % 2 == 1) for i, (a, b) in enumerate(pairwise(edges))]
    return [(text, trained) for text, trained in runs if text]


TWO_TURNS = chat("What is three plus four?", "Seven.", "And now?", "The answer is seven.")
WITH_SYSTEM = chat("What is three plus four?", "Seven.", "And now?", "Seven.", system="Let me think.")


@pytest.mark.parametrize("messages", [TWO_TURNS, WITH_SYSTEM], ids=["plain", "system"])
def test_a_marked_template_trains_what_transformers_says(messages: list[dict[str, Any]]) -> None:
    tokenizer = speaking(MARKED)
    [found] = shown(tokenizer, messages)
    theirs = rendered(tokenizer, messages, return_assistant_tokens_mask=True)
    assert list(found.tokens) == theirs["input_ids"]
    assert mask(found) == theirs["assistant_masks"] and sum(mask(found)) > 4


@pytest.mark.parametrize("messages", [TWO_TURNS, WITH_SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("marks", ["marks", "no marks"])
def test_marks_and_token_ids_agree(messages: list[dict[str, Any]], marks: str) -> None:
    """The same template without its marks: the end token is learned, and the line break behind it is not."""
    marked = speaking(MARKED)
    bare = speaking(MARKED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", ""))
    [found] = shown(marked if marks == "marks" else bare, messages)
    theirs = rendered(marked, messages, return_assistant_tokens_mask=True)
    assert (list(found.tokens), mask(found)) == (theirs["input_ids"], theirs["assistant_masks"])


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHATML, MARKED], ids=["own", "default system", "marked"])
@pytest.mark.parametrize("messages", [TWO_TURNS, WITH_SYSTEM], ids=["plain", "system"])
def test_the_tokens_are_those_of_the_template(template: str, messages: list[dict[str, Any]]) -> None:
    tokenizer = speaking(template)
    [found] = shown(tokenizer, messages)
    assert list(found.tokens) == rendered(tokenizer, messages)["input_ids"]
    end = tokenizer.eos_token
    words = [text for text, trained in pieces(tokenizer, found) if trained]
    assert words == [m["content"] + end for m in messages if m["role"] == "assistant"]


def test_a_default_system_message_is_read_and_not_learned() -> None:
    tokenizer = speaking(CHATML)
    [found] = shown(tokenizer, TWO_TURNS)
    assert pieces(tokenizer, found) == [
        ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is three plus four?"
         "<|im_end|>\n<|im_start|>assistant\n", False),
        ("Seven.<|im_end|>", True),
        ("\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n", False),
        ("The answer is seven.<|im_end|>", True),
        ("\n", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (chat("And now?", "<think>\n3 + 4 = 7\n</think>\n\nSeven."), "3 + 4 = 7\n</think>\n\nSeven."),
        (chat("And now?", "<think>3 + 4 = 7</think>Seven."), "3 + 4 = 7</think>Seven."),
        (chat("And now?", "Seven.", thoughts=["3 + 4 = 7"]), "3 + 4 = 7\n</think>\n\nSeven."),
        (chat("And now?", "Seven."), "\n</think>\n\nSeven."),
        (chat("And now?", "3 + 4 = 7\n</think>\n\nSeven."), "3 + 4 = 7\n</think>\n\nSeven."),
    ],
    ids=["thought", "tight", "apart", "none", "goes on"],
)
def test_a_template_that_opens_the_thought(messages: list[dict[str, Any]], words: str) -> None:
    """The engine's prompt ends with <think>; what is learned goes on from there, though the template loses thoughts."""
    tokenizer = speaking(OPENING)
    [found] = shown(tokenizer, messages)
    assert pieces(tokenizer, found) == [
        ("<bos><|user|>And now?<|assistant|><think>\n", False),
        (f"{words}<eos>", True),
    ]
    prompt = rendered(tokenizer, messages[:1], add_generation_prompt=True)["input_ids"]
    assert list(found.tokens[: found.trained[0][0]]) == prompt


@pytest.mark.parametrize("apart", [False, True])
def test_a_template_that_drops_earlier_thoughts_makes_a_sample_of_each_turn(apart: bool) -> None:
    tokenizer = speaking(DROPPING)
    thought = "<think>\n3 + 4\n</think>\n\n"
    messages = chat("What?", "Seven.", "And now?", "Six.", thoughts=["3 + 4", "3 + 4"])
    if not apart:
        messages = chat("What?", f"{thought}Seven.", "And now?", f"{thought}Six.")
    first, second = shown(tokenizer, messages)
    asked = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(tokenizer, first) == [(asked, False), (f"{thought}Seven.<|im_end|>", True), ("\n", False)]
    again = f"{asked}Seven.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(tokenizer, second) == [(again, False), (f"{thought}Six.<|im_end|>", True), ("\n", False)]
    for demonstration, end in ((first, 2), (second, 4)):
        assert list(demonstration.tokens) == rendered(tokenizer, messages[:end])["input_ids"]
    assert (first.id, second.id) == ("chat/0#1", "chat/0#2")


def test_a_dropping_template_without_thoughts_needs_one_sample() -> None:
    tokenizer = speaking(DROPPING)
    [found] = shown(tokenizer, TWO_TURNS)
    assert list(found.tokens) == rendered(tokenizer, TWO_TURNS)["input_ids"] and len(found.trained) == 2


def test_marks_in_a_dropping_template_are_those_of_each_turn_at_its_time() -> None:
    marked = DROPPING.replace(
        "{%- if loop.index0 > last.user and thought -%}",
        "{%- generation -%}{%- if loop.index0 > last.user and thought -%}",
    ).replace("{{- words + '<|im_end|>\n' -}}", "{{- words + '<|im_end|>' -}}{%- endgeneration -%}{{- '\n' -}}")
    tokenizer = speaking(marked)
    messages = chat("What?", "Seven.", "And now?", "Six.", thoughts=["3 + 4", "3 + 4"])
    turns = shown(tokenizer, messages)
    for turn, end in zip(turns, (2, 4), strict=True):
        theirs = rendered(tokenizer, messages[:end], return_assistant_tokens_mask=True)
        assert list(turn.tokens) == theirs["input_ids"]
        # of the second conversation transformers marks the first turn too, as it stands there: without its thought
        first = turn.trained[0][0]
        assert mask(turn)[first:] == theirs["assistant_masks"][first:] and not any(mask(turn)[:first])
        assert tokenizer.decode(turn.tokens[first:]).startswith("<think>\n3 + 4\n</think>")
    assert shown(speaking(DROPPING), messages) == turns, "found by token ids they are the same"


def test_a_template_of_parts() -> None:
    [plain], [parts] = shown(speaking(CHATML), TWO_TURNS), shown(speaking(PARTS), TWO_TURNS)
    assert parts == plain


def test_a_token_that_spans_the_boundary_is_not_learned() -> None:
    """The prompt ends inside what would be one token of the whole text; an engine can only go on from the prompt."""
    tokenizer = speaking(
        "{{- messages[0].content -}}{%- if messages[1] -%}{{- messages[1].content + eos_token -}}{%- endif -%}"
    )
    whole = tokenizer("thinking", add_special_tokens=False)["input_ids"]
    halves = [tokenizer(half, add_special_tokens=False)["input_ids"] for half in ("th", "ink")]
    assert tokenizer("think", add_special_tokens=False)["input_ids"] != halves[0] + halves[1] and whole
    [found] = shown(tokenizer, chat("th", "ink"))
    assert list(found.tokens) == [*halves[0], *halves[1], tokenizer.eos_token_id]
    assert found.trained == ((len(halves[0]), len(found.tokens)),)


def test_a_template_that_writes_no_end_token_gets_one() -> None:
    tokenizer = speaking("{%- for m in messages -%}{{- '<|' + m.role + '|>' + m.content -}}{%- endfor -%}"
                         "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}")  # fmt: skip
    found = shown(tokenizer, TWO_TURNS)
    assert [pieces(tokenizer, turn)[1] for turn in found] == [
        ("Seven.<eos>", True),
        ("The answer is seven.<eos>", True),
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_end_token_in_the_middle_of_a_turn_is_named(name: str) -> None:
    tokenizer = speaking(TEMPLATES[name])
    if name == "marked":
        return  # its author says what is learned
    with pytest.raises(ValueError, match=r"message 1 of row 'chat/0' holds an end token"):
        shown(tokenizer, chat("What?", f"Seven.{tokenizer.eos_token} Six.", "And now?", "Six."))


def test_other_end_tokens_end_a_turn_too() -> None:
    """A base model's tokenizer may end texts with one token, and its template turns with another."""
    tokenizer = speaking(CHATML)
    tokenizer.eos_token = "<eos>"
    talk = read_conversation("chat/0", TWO_TURNS, "messages")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    [found] = ConversationEncoder(tokenizer, [end])(talk)
    assert [found.tokens[last - 1] for _, last in found.trained] == [end, end]


def test_a_template_that_loses_what_is_said_is_refused() -> None:
    lost = CHATML.replace("m.content", "(m.content if m.role == 'assistant' else '')")
    with pytest.raises(ValueError, match=r"loses the user message 'What is three plus four\?' of row 'chat/0'"):
        shown(speaking(lost), TWO_TURNS)
    raising = "{{- raise_exception('no system here') if messages[0].role == 'system' -}}" + CHATML
    with pytest.raises(ValueError, match=r"fails on row 'chat/0' \(TemplateError: no system here\)"):
        shown(speaking(raising), WITH_SYSTEM)
    empty = MARKED.replace("m.content + '<|im_end|>'", "''")
    with pytest.raises(ValueError, match=r"marks no token of message 1 of row 'chat/0'"):
        shown(speaking(empty), TWO_TURNS)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "holds no list of messages"),
        ([["user", "What?"]], "holds no list of messages"),
        (chat("What?"), "no message of 'messages' is the assistant's"),
        (chat("What?", "Seven.")[1:], "the assistant speaks before the user does"),
        ([{"role": "human", "content": "What?"}], r"messages\[0\]: its role is 'human'; use one of system, "),
        ([{"role": "user"}, {"role": "assistant", "content": "x"}], r"messages\[0\] has no content"),
        (chat("What?", " "), r"messages\[1\] has no content"),
        (chat("What?", "\ud83d"), r"messages\[1\]: its content holds half a character"),
        ([{"role": "user", "content": 7}, {"role": "assistant", "content": "x"}], "its content is no text but a int"),
        ([*chat("What?"), {"role": "assistant", "content": "", "tool_calls": [1]}], "calls a tool"),
    ],
)
def test_rows_that_are_no_conversation_are_named(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_conversation("chat/0", messages, "messages")


def test_what_comes_after_the_last_answer_is_left_out_and_empty_keys_too() -> None:
    extra = [*TWO_TURNS, {"role": "user", "content": "And now?"}]
    assert read_conversation("chat/0", extra, "messages") == read_conversation("chat/0", TWO_TURNS, "messages")
    padded = [{**message, "reasoning_content": None, "name": None} for message in TWO_TURNS]
    assert read_conversation("chat/0", padded, "messages") == read_conversation("chat/0", TWO_TURNS, "messages")
