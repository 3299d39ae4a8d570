"""What servers send in place of an answer: no field of a reply may end the job, or be taken for what it is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from openai._models import construct_type
from openai.types.chat import ChatCompletion

from rlkit.distill import server as module
from rlkit.distill.journal import Answered, Question
from rlkit.distill.server import _read, check_server
from rlkit.errors import UserError
from tests.distill.parts import config, journal_of
from tests.distill.test_server import Reply, completion, right, run, serving

QUESTION = Question(row=4, id="q/4", question="3 + 4", answer="7", meta={})
Change = Callable[[dict[str, Any]], object]


def read(change: Change) -> Answered:
    """Reads a reply with a change, made into an object as the library makes it: unchecked."""
    reply = copy.deepcopy(completion("so 7"))
    change(reply)
    return _read(construct_type(type_=ChatCompletion, value=reply), QUESTION, 2, 9)


def message(**fields: Any) -> Change:
    return lambda reply: reply["choices"][0]["message"].update(fields)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"completion_tokens": 5}, 5),
        ({"completion_tokens": 0}, 0),
        ({"completion_tokens": None}, 2),  # the words of the text
        ({"completion_tokens": "many"}, 2),
        ({"completion_tokens": 3.7}, 2),
        ({"completion_tokens": True}, 2),
        ({"completion_tokens": -5}, 2),
        ({"completion_tokens": 2**70}, 2),
        ({}, 2),
        ("none", 2),
        (None, 2),
        ([7], 2),
    ],
)
def test_tokens_that_no_server_counted_are_words(usage: Any, expected: int) -> None:
    found = read(lambda reply: reply.update(usage=usage))
    assert (found.num_tokens, found.text, found.row, found.sample, found.seed) == (expected, "so 7", 4, 2, 9)


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: reply.update(choices=[]),
        lambda reply: reply.update(choices=None),
        lambda reply: reply.update(choices=7),
        lambda reply: reply.update(choices="abc"),
        lambda reply: reply.update(choices={"a": 1}),
        lambda reply: reply.update(choices=[None]),
        lambda reply: reply["choices"][0].update(message=None),
        lambda reply: reply["choices"][0].update(message="so 7"),
        message(content=7),
        message(content=[{"type": "text", "text": "so 7"}]),
        message(content={"a": 1}),
        message(reasoning_content={"a": 1}),
        message(reasoning=["3+4"]),
    ],
)
def test_what_is_no_completion_is_none(change: Change) -> None:
    with pytest.raises(ValueError, match="ChatCompletion"):
        read(change)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content": None}, ""),
        ({"content": ""}, ""),
        ({"content": None, "reasoning_content": "3+4"}, "<think>3+4</think>"),
        ({"reasoning_content": "", "reasoning": "3+4"}, "<think>3+4</think>so 7"),
        ({"reasoning_content": "a", "reasoning": "b"}, "<think>a</think>so 7"),
        ({"reasoning_content": None}, "so 7"),
        ({"content": "a\n\x00\ud800"}, "a\n\x00\ud800"),
    ],
)
def test_texts_of_a_message(fields: dict[str, Any], text: str) -> None:
    assert read(message(**fields)).text == text


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "refused"), (None, "stop"), ("tool_calls", "stop"),
     ({"a": 1}, "stop"), ([], "stop"), (7, "stop")],
)  # fmt: skip
def test_ends_of_a_completion(reason: Any, finish: str) -> None:
    assert read(lambda reply: reply["choices"][0].update(finish_reason=reason)).finish == finish


def test_a_server_that_counts_nothing_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one whose first reply is a list in place of a text is asked again."""
    monkeypatch.setattr(module, "PAUSE_S", 0.0)

    def reply(request: dict[str, Any], times: int) -> Reply:
        found = right(request) | {"usage": {"completion_tokens": None}}
        if times == 0:
            found["choices"][0]["message"]["content"] = [{"type": "text", "text": "7"}]
        return 200, found

    with serving(reply) as (teacher, requests):
        counts = run(tmp_path, teacher)
    assert (counts.answers, counts.judged, len(requests)) == (30, 30, 60)
    with closing(journal_of(config(tmp_path))) as journal:
        assert all(answer.num_tokens == len(journal.text(row, answer.sample).split())
                   for row, found in journal.answers() for answer in found)  # fmt: skip


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"data": []}, None),  # it does not say
        ({"data": [{"id": "tiny"}, {"id": None}]}, None),
        ({"data": [{"id": None}, {"id": 7}]}, r"the server at teacher.url=.* has None, 7"),
        ({"data": [{"id": f"m{i}"} for i in range(30)]}, r"has m0, m1, .*, m9$"),
        ("<html>", r"does not speak OpenAI's protocol .*its address usually ends in /v1"),
        ({"data": 7}, r"does not speak OpenAI's protocol"),
    ],
)
def test_lists_of_models(body: Any, words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: (200, {})) as (teacher, _):
        # The list is what the library hands on; its own reading of the wire is tested in test_server.
        from openai import OpenAI

        def listed(self: Any) -> Any:
            if body == "<html>":
                raise ValueError("Expecting value")
            return [construct_type(type_=_model(), value=entry) for entry in body["data"]]

        monkeypatch.setattr(type(OpenAI(base_url=teacher.url, api_key="x").models), "list", listed)
        if words is None:
            check_server(teacher)
            return
        with pytest.raises(UserError, match=words):
            check_server(teacher)


def _model() -> Any:
    from openai.types import Model

    return Model
