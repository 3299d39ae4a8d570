"""A server that speaks OpenAI's protocol as a teacher: many requests at a time, each sent again when it fails.

The `openai` package sends requests and waits longer after each failure (connections, timeouts, 408, 409, 429, 5xx; a
server's Retry-After counts). What is not covered: servers that answer a stream, tools, images.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkit.checks import MOST, is_whole, suggestion
from rlkit.config import TeacherConfig
from rlkit.distill.journal import Answered, Question
from rlkit.distill.questions import Asked
from rlkit.distill.selection import REFUSED
from rlkit.distill.teacher import TeacherError
from rlkit.engine.base import rollout_seed
from rlkit.errors import UserError
from rlkit.types import Sampling

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

KEY = "OPENAI_API_KEY"
NO_KEY = "none"
CHECK_S = 20.0
"""Seconds that a server has to say which models it has."""
PAUSE_S, MAX_PAUSE_S = 0.5, 8.0
"""The first and the longest pause before a request is sent again whose answer could not be read."""
UNREADABLE = (400, 413, 422)
"""What a server says of a request that it will never answer, as one that is too long; or of all, where it does not take
what every request has."""
CLOSED = (401, 403, 404)
"""What it says of a key or a model that it does not take."""
GIVE_UP = 2
"""So many times as many failures in a row as there are requests on their way end the job, and so many refused questions
before the first answer."""
SEEDS = 2**31
"""Servers in several languages take seeds below it."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """A request that no retry has helped."""

    why: str


@dataclass(frozen=True, slots=True)
class _Refused:
    """A request that the server will not answer, as it is noted if that is the request's fault."""

    answered: Answered


class ServerTeacher:
    """Asks for one answer a request, at most `teacher.concurrency` at a time."""

    whole_calls = False

    def __init__(self, cfg: TeacherConfig, sampling: Sampling) -> None:
        """Asks nothing yet."""
        self._cfg, self._sampling = cfg, sampling

    def answers(self, asked: Iterable[Asked], *, before: bool = False) -> Generator[Answered]:
        """Yields answers as they come.

        A refusal is the question's own only where the server has answered another one. Until then it waits, since a
        server that does not take our settings refuses everything, and so many such questions as failures end the job.
        If nothing is answered at all, `before` says whose fault it is.

        Raises TeacherError for a server that takes neither key nor model, for one of which nothing comes back any more,
        for one that refuses everything, and at the end if some requests failed for good.
        """
        wanted = ((one, sample) for one in asked for sample in one.question.missing)
        most, in_a_row, failed, why = GIVE_UP * self._cfg.concurrency, 0, 0, ""
        refused: list[Answered] = []
        answered, questions = False, set[int]()
        with closing(self._all(wanted)) as all_found:
            for found in all_found:
                if isinstance(found, Answered):
                    answered, in_a_row = True, 0
                    yield found
                elif isinstance(found, _Failed):
                    in_a_row, failed, why = in_a_row + 1, failed + 1, found.why
                else:
                    refused.append(found.answered)
                    questions.add(found.answered.row)  # which is refused as often as it is asked
                if answered:
                    yield from refused
                    refused.clear()
                    questions.clear()
                if len(questions) >= most:
                    raise TeacherError(self._refusing(refused))
                if in_a_row >= most:
                    raise TeacherError(
                        f"{self._failing(in_a_row, why)}, one after the other; see that the server runs. The same "
                        "command then goes on"
                    )
        if refused and not before:
            raise TeacherError(self._refusing(refused))
        yield from refused
        if failed:
            raise TeacherError(
                f"{self._failing(failed, why)}; all other answers are kept, and the same command asks for these again"
            )

    def _refusing(self, refused: Sequence[Answered]) -> str:
        sampling = self._sampling
        return (
            f"teacher.url={self._cfg.url}: the server has answered nothing and refused {len(refused)} requests (the "
            f"last: {refused[-1].text}); see that it takes temperature={sampling.temperature:g}, "
            f"top_p={sampling.top_p:g}, max_tokens={sampling.max_new_tokens} and a seed. The same command then asks "
            "for these again; for other sampling settings, set another output_dir"
        )

    def _failing(self, count: int, why: str) -> str:
        times = self._cfg.retries + 1
        return f"teacher.url={self._cfg.url}: {count} requests failed, each of them {times} times (the last: {why})"

    def _all(self, wanted: Iterator[tuple[Asked, int]]) -> Generator[Answered | _Failed | _Refused]:
        """Keeps as many requests on their way as are allowed; what is on its way at the end of the block is dropped."""
        loop = asyncio.new_event_loop()
        client = _client(self._cfg)
        running: set[asyncio.Task[Answered | _Failed | _Refused]] = set()
        try:
            while True:
                while len(running) < self._cfg.concurrency and (pair := next(wanted, None)) is not None:
                    running.add(loop.create_task(self._ask(client, *pair)))
                if not running:
                    return
                done, running = loop.run_until_complete(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
                # What was answered comes before what ends the job.
                for task in sorted(done, key=lambda task: task.exception() is not None):
                    yield task.result()
        finally:
            loop.run_until_complete(_end(client, running))
            loop.close()

    async def _ask(self, client: AsyncOpenAI, asked: Asked, sample: int) -> Answered | _Failed | _Refused:
        """Asks until an answer can be read; what the library sends again by itself counts as one time."""
        from openai import APIConnectionError, APIStatusError, OpenAIError

        question = asked.question
        seed = rollout_seed(self._sampling.seed, question.id, sample) % SEEDS
        why = ""
        for attempt in range(self._cfg.retries + 1):
            try:
                completion = await client.chat.completions.create(
                    model=self._cfg.model,
                    messages=[{"role": "user", "content": asked.prompt.text}],
                    temperature=self._sampling.temperature,
                    top_p=self._sampling.top_p,
                    max_tokens=self._sampling.max_new_tokens,
                    seed=seed,
                )
                return _read(completion, question, sample, seed)
            except APIStatusError as error:
                if error.status_code in CLOSED:
                    raise TeacherError(
                        f"teacher.url={self._cfg.url} answers {error.status_code} ({_short(error)}); check "
                        f"teacher.model={self._cfg.model} and the key in {KEY}. The same command then goes on"
                    ) from error
                if error.status_code in UNREADABLE:
                    return _Refused(_answered(question, sample, seed, _said(error), 0, REFUSED))
                return _Failed(_short(error))
            except APIConnectionError as error:
                return _Failed(_short(error.__cause__ or error))
            except (OpenAIError, ValueError) as error:  # an answer that is no completion: cut off, or somebody else's
                why = _short(error)
                await asyncio.sleep(min(MAX_PAUSE_S, PAUSE_S * 2**attempt))
        return _Failed(f"no completion: {why}")


def check_server(cfg: TeacherConfig) -> None:
    """Raises UserError, with the fix, for a server that cannot be reached, or that does not have the model."""
    from openai import APIConnectionError, APIStatusError, OpenAI, OpenAIError

    with OpenAI(base_url=cfg.url, api_key=_key(), timeout=min(CHECK_S, cfg.timeout), max_retries=cfg.retries) as client:
        try:
            names = [str(model.id) for model in client.models.list()]
        except APIConnectionError as error:
            raise UserError(
                f"teacher.url={cfg.url} cannot be reached ({_short(error.__cause__ or error)}); start the server, or "
                "correct the address"
            ) from error
        except APIStatusError as error:
            if error.status_code == 404:  # not every server lists its models
                return
            raise UserError(
                f"teacher.url={cfg.url} answers {error.status_code} when asked for its models ({_short(error)}); "
                f"correct the address, or the key in {KEY}"
            ) from error
        except (OpenAIError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"teacher.url={cfg.url} does not speak OpenAI's protocol ({_short(error)}); its address usually ends "
                "in /v1"
            ) from error
    if names and cfg.model not in names:
        raise UserError(
            f"teacher.model={cfg.model!r}: the server at teacher.url={cfg.url} has {', '.join(names[:10])}"
            f"{suggestion(cfg.model, names)}"
        )


def _client(cfg: TeacherConfig) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=cfg.url, api_key=_key(), timeout=cfg.timeout, max_retries=cfg.retries)


async def _end(client: AsyncOpenAI, running: Iterable[asyncio.Task[Answered | _Failed | _Refused]]) -> None:
    """Drops what is on its way and closes the connections."""
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await client.close()


def _key() -> str:
    return os.environ.get(KEY) or NO_KEY


def _read(completion: Any, question: Question, sample: int, seed: int) -> Answered:
    """Reads a completion; raises ValueError for what is none. A thought that comes apart goes back into its marks."""
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message, usage = getattr(choice, "message", None), getattr(completion, "usage", None)
    thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
    content = getattr(message, "content", None) or ""
    # The library checks none of it: a field may hold anything that JSON can.
    if not hasattr(message, "content") or not all(isinstance(part, str) for part in (thought, content)):
        raise ValueError(f"{str(completion)[:100]!r}")
    text = (f"<think>{thought}</think>" if thought else "") + content
    counted = getattr(usage, "completion_tokens", None)
    num_tokens = counted if is_whole(counted) and 0 <= counted <= MOST else len(text.split())
    reason = getattr(choice, "finish_reason", None)
    finish = "length" if reason == "length" else REFUSED if reason == "content_filter" else "stop"
    return _answered(question, sample, seed, text, num_tokens, finish)


def _answered(question: Question, sample: int, seed: int, text: str, num_tokens: int, finish: str) -> Answered:
    return Answered(
        row=question.row,
        sample=sample,
        seed=seed,
        text=text,
        tokens=(),
        num_tokens=num_tokens,
        finish=finish,
    )


def _short(error: BaseException) -> str:
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0][:200]}" if words else type(error).__name__


def _said(error: APIStatusError) -> str:
    """Returns an error with what the server says, also where it does not say it as OpenAI does ({"detail": ...})."""
    words, body = _short(error), error.body
    is_in_words = isinstance(body, Mapping) and isinstance(body.get("message"), str)
    return words if is_in_words or not body else f"{words} - {' '.join(str(body).split())[:200]}"
