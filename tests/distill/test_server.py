"""A server as the teacher: a real one in this process that fails in every way there is."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlkit.config import TeacherConfig
from rlkit.distill import server as module
from rlkit.distill.generate import generate
from rlkit.distill.journal import Counts
from rlkit.distill.selection import REFUSED
from rlkit.distill.server import ServerTeacher, check_server
from rlkit.distill.teacher import TeacherError
from rlkit.errors import UserError
from rlkit.types import Sampling
from tests.distill.parts import FakeReward, answer_of, config, journal_of, prompts_of, rows

SAMPLING = Sampling(temperature=0.6, top_p=0.95, max_new_tokens=16, seed=5)
Reply = tuple[int, Any]
"""A status and a body; a status of 0 closes the connection."""


def completion(text: str | None, **message: str) -> dict[str, Any]:
    """A chat completion as servers send it."""
    finish = message.pop("finish_reason", "stop")
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 3, "completion_tokens": 11, "total_tokens": 14}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice], "usage": usage}


def right(request: dict[str, Any]) -> dict[str, Any]:
    """Answers "Compute i + i ..."; the seed says which of the answers it is."""
    return completion(answer_of(row_of(request), request["seed"] % 2))


def row_of(request: dict[str, Any]) -> int:
    """The first number of the question."""
    found = re.search(r"[0-9]+", request["messages"][0]["content"])
    assert found is not None
    return int(found[0])


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[tuple[TeacherConfig, list[dict[str, Any]]]]:
    """Serves `reply(request, how often this request has come)` and yields the teacher's settings and all requests."""
    requests: list[dict[str, Any]] = []
    times: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                key = f"{request['messages'][0]['content']}/{request['seed']}"
                before = times[key]
                times[key] += 1
                requests.append(request)
            status, body = reply(request, before)
            if status:
                self.send(status, body)
            else:
                self.close_connection = True

        def send(self, status: int, body: Any) -> None:
            raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
        try:
            yield TeacherConfig(url=url, model="tiny", concurrency=4, timeout=20, retries=3), requests
        finally:
            httpd.shutdown()
            thread.join()


def run(folder: Path, teacher: TeacherConfig, *words: str, seed: int = 5, number: int = 10) -> Counts:
    cfg = config(folder, *words)

    @contextmanager
    def start() -> Iterator[ServerTeacher]:
        yield ServerTeacher(teacher, replace(SAMPLING, seed=seed))

    with closing(journal_of(cfg, rows(number))) as journal:
        for _ in generate(journal, start, FakeReward(), prompts_of(cfg), cfg):
            pass
        return journal.counts()


def test_each_answer_is_one_request_with_a_seed_of_its_own(tmp_path: Path) -> None:
    with serving(lambda request, times: (200, right(request))) as (teacher, requests):
        counts = run(tmp_path, teacher, "data.instruction=Think.")
    assert (counts.answers, counts.judged, counts.tokens) == (30, 30, 330)
    assert len(requests) == 30
    first = requests[0]
    assert (first["model"], first["temperature"], first["top_p"], first["max_tokens"]) == ("tiny", 0.6, 0.95, 16)
    assert all(request["messages"][0]["content"].startswith("Think.\nCompute ") for request in requests)
    seeds = Counter(request["seed"] for request in requests)
    assert set(seeds.values()) == {1} and max(seeds) < 2**31


def test_the_seed_of_the_job_is_in_every_request(tmp_path: Path) -> None:
    def seeds(life: str, seed: int) -> set[int]:
        with serving(lambda request, times: (200, right(request))) as (teacher, requests):
            run(tmp_path / life, teacher, seed=seed, number=2)
        return {request["seed"] for request in requests}

    first, again, other = seeds("first", 0), seeds("again", 0), seeds("other", 1)
    assert first == again and len(first) == len(other) == 6 and not first & other


@pytest.mark.slow
def test_a_flaky_server_loses_nothing_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the requests the first comes back with an error, a closed connection, half an answer, or none at all."""
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    failures: list[Reply] = [(500, "no"), (429, {}), (503, ""), (200, '{"choices": ['), (200, {"choices": []}), (0, "")]

    def reply(request: dict[str, Any], times: int) -> Reply:
        kind = request["seed"] % (len(failures) + 1)
        return failures[kind] if kind < len(failures) and times == 0 else (200, right(request))

    with serving(reply) as (teacher, requests):
        counts = run(tmp_path, teacher)
    assert (counts.answers, counts.judged) == (30, 30)
    seeds = Counter(request["seed"] for request in requests)
    assert len(seeds) == 30 and set(seeds.values()) == {1, 2}


def test_what_no_retry_helps_is_asked_again_at_the_next_start(tmp_path: Path) -> None:
    broken = True

    def reply(request: dict[str, Any], times: int) -> Reply:
        return (500, "no") if broken and request["seed"] % 5 == 0 else (200, right(request))

    with serving(reply) as (teacher, requests):
        with pytest.raises(TeacherError, match=r"each of them 4 times .*InternalServerError.*asks for these"):
            run(tmp_path, teacher)
        served = {request["seed"] for request in requests if request["seed"] % 5}
        assert 15 < len(served) < 30
        broken = False
        requests.clear()
        assert run(tmp_path, teacher).answers == 30
        assert len(requests) == 30 - len(served), "only what is missing"


def test_a_dead_server_ends_the_job_early(tmp_path: Path) -> None:
    with serving(lambda request, times: (500, "no")) as (teacher, requests):
        with pytest.raises(TeacherError, match=r"8 requests failed.*one after the other; see that the server runs"):
            run(tmp_path, replace(teacher, retries=0))
        assert len(requests) < 20


def test_a_closed_door_says_so_and_keeps_what_was_answered(tmp_path: Path) -> None:
    def reply(request: dict[str, Any], times: int) -> Reply:
        return (401, "bad key") if request["seed"] % 3 == 0 else (200, right(request))

    with serving(reply) as (teacher, _):  # noqa: SIM117
        with pytest.raises(TeacherError, match=r"answers 401 .*and the key in OPENAI_API_KEY"):
            run(tmp_path, replace(teacher, concurrency=1))
    with closing(journal_of(config(tmp_path))) as journal:
        assert 0 < journal.counts().answers < 30


def test_what_a_server_will_not_answer_is_noted_and_never_asked_again(tmp_path: Path) -> None:
    def reply(request: dict[str, Any], times: int) -> Reply:
        row = row_of(request)
        filtered = completion("", finish_reason="content_filter")
        return (400, "too long") if row == 3 else (200, filtered) if row == 4 else (200, right(request))

    with serving(reply) as (teacher, requests):
        assert run(tmp_path, teacher).judged == 30
        asked = len(requests)
        run(tmp_path, teacher)
        assert len(requests) == asked == 30
    with closing(journal_of(config(tmp_path))) as journal:
        refused = {row for row, found in journal.answers() for answer in found if answer.finish == REFUSED}
        assert refused == {3, 4}


@pytest.mark.parametrize(
    ("number", "error"),  # fewer questions than end a job early, and more
    [(1, {"error": {"message": "max_tokens is too large"}}), (10, {"detail": "max_tokens is too large"})],
)
def test_a_server_that_refuses_everything_ends_the_job_and_spoils_nothing(
    number: int, error: dict[str, Any], tmp_path: Path
) -> None:
    """Its window is smaller than max_tokens, or it knows no seeds: no fault of any question."""
    broken = True

    def reply(request: dict[str, Any], times: int) -> Reply:
        return (400, error) if broken else (200, right(request))

    with serving(reply) as (teacher, requests):
        with pytest.raises(TeacherError, match=r"refused \d+ requests .*max_tokens is too large.*max_tokens=16 and a"):
            run(tmp_path, teacher, number=number)
        assert len(requests) < 30
        broken = False
        counts = run(tmp_path, teacher, number=number)
    assert counts.answers == counts.judged == 3 * number
    with closing(journal_of(config(tmp_path))) as journal:
        assert {answer.finish for _, found in journal.answers() for answer in found} == {"stop"}


def test_a_question_that_is_refused_often_counts_once(tmp_path: Path) -> None:
    """A refusal comes at once and an answer takes its time, so many may come before the first answer."""
    with serving(lambda request, times: (400, "no") if row_of(request) == 0 else (200, right(request))) as (teacher, _):
        assert run(tmp_path, replace(teacher, concurrency=1)).judged == 30, "three refusals, and two end a job"
    with closing(journal_of(config(tmp_path))) as journal:
        refused = {row for row, found in journal.answers() for answer in found if answer.finish == REFUSED}
        assert refused == {0}


def test_what_is_refused_last_is_noted_in_the_next_life(tmp_path: Path) -> None:
    """The life that was killed has answered all but one question, and that one no life will."""
    dies = True

    def reply(request: dict[str, Any], times: int) -> Reply:
        refused: Reply = (500, "no") if dies else (400, "too long")
        return refused if row_of(request) == 9 else (200, right(request))

    with serving(reply) as (teacher, _):
        with pytest.raises(TeacherError, match="asks for these again"):
            run(tmp_path, replace(teacher, retries=0))
        dies = False
        assert run(tmp_path, teacher).judged == 30


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_that_comes_apart_goes_back_into_its_marks(name: str, tmp_path: Path) -> None:
    with serving(lambda request, times: (200, completion("so 7", **{name: "3+4"}))) as (teacher, _):
        run(tmp_path, teacher)
    with closing(journal_of(config(tmp_path))) as journal:
        assert journal.text(0, 0) == "<think>3+4</think>so 7"


def test_an_answer_that_was_cut_off_is_known_as_such(tmp_path: Path) -> None:
    with serving(lambda request, times: (200, completion("so", finish_reason="length"))) as (teacher, _):
        run(tmp_path, teacher)
    with closing(journal_of(config(tmp_path))) as journal:
        assert {answer.finish for _, found in journal.answers() for answer in found} == {"length"}


def test_a_server_is_looked_at_before_anything_starts() -> None:
    with serving(lambda request, times: (200, {})) as (teacher, _):
        check_server(teacher)
        with pytest.raises(UserError, match=r"teacher.model='tini': the server .* has tiny \(did you mean 'tiny'\?\)"):
            check_server(replace(teacher, model="tini"))
        gone = teacher
    with pytest.raises(UserError, match=r"teacher.url=http://127.0.0.1:\d+/v1 cannot be reached"):
        check_server(replace(gone, retries=0))
