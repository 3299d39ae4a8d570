"""Any server that speaks OpenAI's chat completions: asked side by side, again when it fails, never for ever.

Every question has `tries` attempts of `timeout` seconds, with a growing pause between them or the one that the server
asks for, and all of them together end at a deadline. What is not covered: answers that are streamed.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rewards.base import RewardError
from rewards.judge.answer import Answer, Failure
from rewards.judge.ballots import Question

if TYPE_CHECKING:
    import ssl

    import httpx  # takes longer to import than the rest of the package

PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
"""The pause after the first failure, and the longest; it doubles from one to the next."""
MAX_BYTES = 16 * 2**20
"""No answer is longer: a server that sends without end must not fill the memory."""
MAX_DETAIL = 120
"""Characters of a server's own words that are kept."""
TRANSIENT = (408, 409, 425, 429, *range(500, 600))
"""What a server says when the same question may be answered later."""


class _AgainError(Exception):
    """The attempt failed, and another may not; `pause` is what the server asked for, in seconds."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


class _RefusedError(Exception):
    """The server does not take this question, however often it is asked."""


class Endpoint:
    """A server and the model that it serves, with what is sent along with every question."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        key_env: str,
        body: Mapping[str, Any],
        concurrency: int,
        tries: int,
        timeout: float,
    ) -> None:
        """`body` is sent with every question; the key is read from the environment variable `key_env`, "" for none.

        Raises RewardError for an address that is none, without a model, and for a variable that holds no key.
        """
        if not url:
            raise RewardError(
                "judge: endpoint is missing; give the address of an OpenAI-compatible server, as "
                "http://127.0.0.1:8000/v1, or policy for the model that is trained"
            )
        if not _is_address(url):
            raise RewardError(f"judge: endpoint={url!r} is no address; give one as http://127.0.0.1:8000/v1, or policy")
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise RewardError(
                "judge: endpoint holds a user, a password or a query, which would be written to config.yaml; give the "
                "bare address, and the name of the environment variable with the key as key_env"
            )
        if not model:
            raise RewardError("judge: model is missing; give the name under which the endpoint serves it")
        self.url, self.model = url.rstrip("/"), model
        self._key = _read_key(key_env)
        self._body = {"model": model, **body}
        self._concurrency, self._tries, self._timeout = concurrency, tries, timeout
        self._certificates: ssl.SSLContext | None = None

    async def answers(self, asked: Sequence[Question], deadline: float) -> list[Answer | Failure]:
        """Asks all questions, `concurrency` at a time; those without an answer at the deadline have failed."""
        import httpx

        gate = asyncio.Semaphore(self._concurrency)
        async with httpx.AsyncClient(headers=self._headers(), timeout=None, verify=self._trusted()) as client:
            tasks = [asyncio.create_task(self._ask(client, gate, question, deadline)) for question in asked]
            if not tasks:
                return []
            _, late = await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))
            for task in late:
                task.cancel()
            await asyncio.wait(tasks)
        over = Failure(reason="infra: no answer before reward.kwargs.patience was over")
        return [over if task.cancelled() else task.result() for task in tasks]

    def check(self) -> None:
        """Asks the server for its models; raises RewardError if nobody answers, or it takes another key or model."""
        import httpx

        place = f"judge: endpoint={self.url}"
        try:
            response = httpx.get(
                f"{self.url}/models", headers=self._headers(), timeout=self._timeout, verify=self._trusted()
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RewardError(
                f"{place}: nobody answers there ({self._words(error)}); start the server, or correct the address"
            ) from None  # the chain would show the headers
        if response.status_code in (401, 403):
            raise RewardError(
                f"{place} answers HTTP {response.status_code}: it wants {'another' if self._key else 'a'} key; name "
                "the environment variable that holds it as reward.kwargs.key_env"
            )
        served = _models(response)
        if served and self.model not in served:
            raise RewardError(
                f"judge: model={self.model!r} is not served by {self.url}, which has {', '.join(served[:8])}; set "
                "reward.kwargs.model"
            )

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _trusted(self) -> ssl.SSLContext:
        """Returns whose certificates are believed, read once: reading them takes longer than a question."""
        import ssl

        import httpx

        if self._certificates is None:
            https = self.url.startswith("https:")
            self._certificates = httpx.create_ssl_context() if https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return self._certificates

    async def _ask(
        self, client: httpx.AsyncClient, gate: asyncio.Semaphore, question: Question, deadline: float
    ) -> Answer | Failure:
        chance = random.Random(question.text)  # questions that failed together do not all come back together
        why, attempt = "", 0
        for attempt in range(1, self._tries + 1):
            try:
                async with gate, asyncio.timeout(self._timeout):
                    return await self._once(client, question)
            except _RefusedError as error:
                return Failure(reason=f"infra: {error}")
            except TimeoutError:
                why, pause = f"no whole answer within {self._timeout:g} s", 0.0
            except _AgainError as error:
                why, pause = str(error), error.pause
            if attempt == self._tries:
                break
            longest = min(MAX_PAUSE_S, PAUSE_S * 2 ** (attempt - 1))
            pause = max(pause, longest * (0.5 + chance.random() / 2))
            if time.monotonic() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        return Failure(reason=f"infra: {why} (asked {attempt} times)")

    async def _once(self, client: httpx.AsyncClient, question: Question) -> Answer:
        import httpx

        message = {"role": "user", "content": question.text}
        body = {**self._body, "messages": [message], "seed": question.seed}
        try:
            async with client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                content = bytearray()
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > MAX_BYTES:
                        raise _RefusedError(f"an answer of more than {MAX_BYTES >> 20} MiB")
        except httpx.HTTPError as error:  # refused, reset, cut off, broken compression
            raise _AgainError(self._words(error)) from None
        text = content.decode(errors="replace")
        if response.status_code in TRANSIENT:
            raise _AgainError(f"HTTP {response.status_code}", _retry_after(response))
        if response.status_code != 200:
            raise _RefusedError(f"HTTP {response.status_code}: {self._hidden(text)}")
        return self._read(text)

    def _read(self, text: str) -> Answer:
        import json

        try:
            choice = json.loads(text)["choices"][0]
            content = choice["message"]["content"]
            if not isinstance(content, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            raise _AgainError(f"this is no chat completion: {self._hidden(text)!r}") from None
        return Answer(text=content or "", whole=choice.get("finish_reason") not in ("length", "content_filter"))

    def _words(self, error: Exception) -> str:
        text = str(error)
        return f"{type(error).__name__}{f': {self._hidden(text)}' if text else ''}"

    def _hidden(self, text: str) -> str:
        """Shortens a server's words, and takes the key out: some servers repeat it."""
        return (text.replace(self._key, "[key]") if self._key else text)[:MAX_DETAIL]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        whole = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        return False
    return whole and parts.scheme in ("http", "https")


def _read_key(key_env: str) -> str:
    if not key_env:
        return ""
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise RewardError(f"judge: key_env={key_env!r}: there is no such environment variable; export it with the key")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise RewardError(f"judge: the environment variable {key_env} holds no key: there are blanks in it")
    return key


def _models(response: httpx.Response) -> list[str]:
    """Returns the names of the models that a server lists; [] for one that has no such list."""
    try:
        return [str(model["id"]) for model in response.json()["data"]] if response.status_code == 200 else []
    except (ValueError, LookupError, TypeError, RecursionError):
        return []


def _retry_after(response: httpx.Response) -> float:
    """Returns the seconds that the server asks to wait for; 0 if it does not say, or gives a date."""
    try:
        return min(MAX_PAUSE_S, max(0.0, float(response.headers.get("retry-after", "0"))))
    except ValueError:
        return 0.0
