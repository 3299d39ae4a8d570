"""A server that lies, stalls and breaks: what is tried again, for how long, and what is said of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from typing import Any

import pytest

from rewards import RewardError
from rewards.judge import endpoint as module
from rewards.judge.answer import Answer, Failure
from rewards.judge.ballots import Question
from rewards.judge.endpoint import Endpoint
from tests.rewards.judge.scripted import Reply, Script, Scripted, fails, says, serving

KEY = "sk-very-secret-123"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)


def asking(server: Scripted, *texts: str, patience: float = 30.0, **settings: Any) -> list[Answer | Failure]:
    chosen: dict[str, Any] = {"model": "tiny", "key_env": "", "body": {}, "concurrency": 4, "tries": 3, "timeout": 10.0}
    endpoint = Endpoint(server.url, **chosen | settings)
    questions = [Question(text=text, seed=5) for text in texts]
    return asyncio.run(endpoint.answers(questions, time.monotonic() + patience))


def first(script: Script, **settings: Any) -> tuple[Answer | Failure, Scripted]:
    with serving(script) as server:
        [answer] = asking(server, "x", **settings)
    return answer, server


def test_answers_come_in_the_order_of_the_questions() -> None:
    with serving(lambda body, _: says(body["messages"][0]["content"].upper())) as server:
        found = asking(server, *"abcdefgh", body={"temperature": 0.5, "max_tokens": 9})
    assert found == [Answer(text=letter) for letter in "ABCDEFGH"]
    assert server.asked[0] == {
        "model": "tiny", "messages": [{"role": "user", "content": server.texts[0]}], "seed": 5, "temperature": 0.5,
        "max_tokens": 9,
    }  # fmt: skip


def test_no_more_questions_are_open_than_allowed() -> None:
    """All wait until as many are there as may be, and the server never sees one more."""
    gate = threading.Barrier(3)

    def script(body: dict[str, Any], before: int) -> Reply:
        gate.wait(30)
        return says("ok")

    with serving(script) as server:
        found = asking(server, *map(str, range(9)), concurrency=3)
    assert server.most == 3 and found == [Answer(text="ok")] * 9


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again(status: int) -> None:
    answer, server = first(lambda _, before: says("ok") if before == 2 else fails(status))
    assert answer == Answer(text="ok") and len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 307])
def test_what_stays_is_asked_once(status: int) -> None:
    answer, server = first(lambda *_: fails(status, "the context is too long", Location="/elsewhere"))
    assert answer == Failure(reason=f"infra: HTTP {status}: the context is too long") and len(server.asked) == 1


def test_only_what_failed_is_asked_again() -> None:
    with serving(lambda body, before: fails(500) if body["messages"][0]["content"] == "b" else says("ok")) as server:
        found = asking(server, *"abc")
    assert found == [Answer(text="ok"), Failure(reason="infra: HTTP 500 (asked 3 times)"), Answer(text="ok")]
    assert sorted(server.texts) == ["a", "b", "b", "b", "c"]


BROKEN = {
    "cut": Reply(body=says("x" * 500).body, sent=200),
    "cut before the first byte": Reply(body=says("ok").body, sent=0),
    "cut in a chunk": Reply(body=b'ff\r\n{"choices"', headers={"Transfer-Encoding": "chunked"}, sent=14),
    "no JSON": Reply(body=b"<html>gateway</html>"),
    "nothing": Reply(body=b""),
    "an error with status 200": Reply(body=b'{"error": {"message": "overloaded"}}'),
    "no choices": Reply(body=b'{"choices": []}'),
    "choices of another kind": Reply(body=b'{"choices": 7}'),
    "content that is no text": says([{"type": "text", "text": "[[A]]"}]),
    "a number": says(7),
    "a list": Reply(body=b"[]"),
    "null": Reply(body=b"null"),
    "depth": Reply(body=b"[" * 100_000),
    "bytes that are no UTF-8": Reply(body=b"\xff\xfe\x00"),
    "not compressed": Reply(body=b"{}", headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_answer_is_tried_again_and_then_no_answer(what: str) -> None:
    answer, server = first(lambda *_: BROKEN[what])
    assert isinstance(answer, Failure) and answer.reason.startswith("infra: ") and "(asked 3 times)" in answer.reason
    assert len(server.asked) == 3 and len(answer.reason) < 300
    answer, _ = first(lambda _, before: says("ok") if before else BROKEN[what])
    assert answer == Answer(text="ok")


def test_a_server_that_stalls_is_left_alone_in_time() -> None:
    start = time.monotonic()
    answer, server = first(lambda *_: Reply(body=says("ok").body, sent=20, stalls=True), timeout=0.3, tries=2)
    assert answer == Failure(reason="infra: no whole answer within 0.3 s (asked 2 times)") and len(server.asked) == 2
    assert time.monotonic() - start < 20


def test_all_ends_when_patience_is_over_and_what_is_there_is_kept() -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        late = body["messages"][0]["content"] == "late"
        return Reply(body=says("x").body, sent=3, stalls=True) if late else says("ok")

    with serving(script) as server:
        found = asking(server, "a", "late", "b", patience=1.0, timeout=60.0)
    assert found[0] == found[2] == Answer(text="ok")
    assert found[1] == Failure(reason="infra: no answer before reward.kwargs.patience was over")


def test_a_pause_that_would_outlast_patience_is_not_made() -> None:
    start = time.monotonic()
    answer, server = first(lambda *_: fails(429, Retry_After="25"), patience=5.0)
    assert answer == Failure(reason="infra: HTTP 429 (asked 1 times)") and len(server.asked) == 1
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("asked", ["0.2", "-5", "nan", "Wed, 21 Oct 2026 07:28:00 GMT", ""])
def test_a_server_may_ask_for_a_pause(asked: str) -> None:
    times: list[float] = []

    def script(_: object, before: int) -> Reply:
        times.append(time.monotonic())
        return says("ok") if before else fails(429, Retry_After=asked)

    answer, _ = first(script)
    assert answer == Answer(text="ok")
    assert asked != "0.2" or times[1] - times[0] >= 0.2


def test_an_answer_without_end_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be small on the wire."""
    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    bomb = Reply(body=gzip.compress(says("x" * 5_000_000).body), headers={"Content-Encoding": "gzip"})
    answer, server = first(lambda *_: bomb)
    assert answer == Failure(reason="infra: an answer of more than 1 MiB") and len(server.asked) == 1


@pytest.mark.parametrize(("finish", "whole"), [("stop", True), ("length", False), ("content_filter", False)])
def test_whether_an_answer_is_whole(finish: str, whole: bool) -> None:
    assert first(lambda *_: says("[[A]]", finish))[0] == Answer(text="[[A]]", whole=whole)


def test_an_answer_of_nothing_is_an_answer() -> None:
    """Servers that set a thought apart send null when nothing follows it."""
    assert first(lambda *_: says(None))[0] == Answer(text="")


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    for status in (400, 503, 200):
        reply = fails(status, f'{{"error": "bad key {KEY}"}}')
        answer, server = first(lambda *_, reply=reply: reply, key_env="JUDGE_KEY", tries=1)
        assert server.keys == [f"Bearer {KEY}"]
        assert isinstance(answer, Failure) and KEY not in answer.reason
    assert "bad key [key]" in answer.reason
    with serving(lambda *_: says("")) as server:
        asking(server, "x")
    assert server.keys == [None]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "endpoint is missing"),
        ("localhost:8000", "is no address"),
        ("ftp://x/v1", "is no address"),
        ("http://", "is no address"),
        ("http://me:secret@host/v1", "holds a user, a password"),
        ("https://host/v1?key=secret", "a query"),
    ],
)
def test_addresses_that_are_none(url: str, words: str) -> None:
    with pytest.raises(RewardError, match=words) as raised:
        Endpoint(url, model="m", key_env="", body={}, concurrency=1, tries=1, timeout=1)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "words"), [(None, "no such environment variable"), (" ", "no such"), ("a b", "blanks")]
)
def test_variables_that_hold_no_key(monkeypatch: pytest.MonkeyPatch, key: str | None, words: str) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(RewardError, match=words):
        Endpoint("http://h/v1", model="m", key_env="JUDGE_KEY", body={}, concurrency=1, tries=1, timeout=1)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (("tiny", "other"), None),
        (("other", "third"), "model='tiny' is not served by .*, which has other, third"),
        (fails(401, KEY), "answers HTTP 401: it wants another key"),
        (fails(403), "HTTP 403"),
        (fails(404), None),  # it has no such list
        (fails(503), None),  # its questions will be tried again
        (Reply(body=b"hello"), None),
        (Reply(body=b'{"data": 7}'), None),
        (Reply(body=says("x").body, sent=5), "nobody answers there"),
    ],
)
def test_the_server_is_looked_at_before_a_run(monkeypatch: pytest.MonkeyPatch, models: Any, words: str | None) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda *_: says(""), models) as server:
        endpoint = Endpoint(server.url, model="tiny", key_env="JUDGE_KEY", body={}, concurrency=1, tries=1, timeout=9)
        if words is None:
            endpoint.check()
        else:
            with pytest.raises(RewardError, match=words) as raised:
                endpoint.check()
            assert KEY not in str(raised.value)
    assert server.keys == [f"Bearer {KEY}"]


def test_nobody_answers() -> None:
    with serving(lambda *_: says("")) as server:
        pass
    endpoint = Endpoint(server.url, model="tiny", key_env="", body={}, concurrency=1, tries=2, timeout=9)
    with pytest.raises(RewardError, match=r"nobody answers there \(ConnectError.*start the server"):
        endpoint.check()
    [answer] = asyncio.run(endpoint.answers([Question(text="x", seed=0)], time.monotonic() + 10))
    assert isinstance(answer, Failure) and answer.reason.startswith("infra: ConnectError")


def test_the_body_is_json_whatever_the_question_holds() -> None:
    text = 'quotes " and \\ and \0 and \u2028 and emoji \U0001f600'
    with serving(lambda body, _: says(json.dumps(body["messages"][0]["content"]))) as server:
        [answer] = asking(server, text)
    assert isinstance(answer, Answer) and json.loads(answer.text) == text
