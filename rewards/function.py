"""A user's function or object behind one call: samples go in, as many verdicts come out, or an error that names it."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

from rewards.adapters import SHAPES, WAYS, Shape, find_shape, misread, row_columns
from rewards.base import Reward, RewardError, Sample
from rewards.failure import described

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_TYPES = {
    "bool": (bool, "true or false"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "text; put it in quotes"),
}
"""The annotations that settings are checked against: what they accept, and what the error asks for."""
CONVERSATIONAL = "conversational"
"""The setting that gives a function in TRL's shape chat messages, whatever the prompt is."""


@runtime_checkable
class Closable(Protocol):
    """Something with workers or files to let go of."""

    def close(self) -> None:
        """Lets go of them."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """Something that can say of rows that it cannot judge them, before a model has answered them."""

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raises RewardError for rows that could not be judged."""
        ...


class RewardFunction:
    """What `rewards.load` returns: call it on a list of samples.

    Parameters are filled by name: from the bound `kwargs`, else from the sample, else from the columns of its row. A
    class is constructed with `kwargs`, and its object called. It pickles as what `load` was given, so another process
    finds or constructs it anew.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        given: str | Callable[..., Any],
        kwargs: Mapping[str, Any],
        shape: str = "",
    ) -> None:
        """Checks the signature; raises RewardError if it fits no shape (unless one is forced) or refuses `kwargs`."""
        self.given, self.kwargs = given, dict(kwargs)
        self.name = given if isinstance(given, str) else str(given)
        is_class = isinstance(target, type)
        self.fn = self._construct(target) if is_class else target
        if not callable(self.fn):
            raise RewardError(f"reward {self.name!r} is a {type(self.fn).__name__}, not a function; {WAYS}")
        self.settings = {} if is_class else dict(kwargs)
        parameters = _signature(self.fn, self.name).parameters.values()
        self.takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        self.named = {parameter.name for parameter in parameters if parameter.kind in _BY_NAME}
        self.required = {p.name for p in parameters if p.kind in _BY_NAME and p.default is inspect.Parameter.empty}
        self.forced = shape
        self.shape = self._shape()
        supplied = self.shape.supplied
        for key in self.settings:
            known = self.named - supplied
            # With **columns any name is taken; one that is nearly that of a setting is still a slip.
            settable = known - self.required - self.settings.keys()
            slip = key not in known and get_close_matches(key, settable, n=1, cutoff=0.83)
            if key in supplied or slip or not (self.takes_any or key in known):
                raise self._no_setting(key, known)
        if not is_class:
            self._check_types(parameters)

    def __repr__(self) -> str:
        """Shows the name and the settings."""
        return f"<reward {self.name!r} {self.kwargs}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as a call of `rewards.load`."""
        from rewards.registry import reload

        return reload, (self.given, self.kwargs, self.forced)

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges every sample, in order; raises RewardError if the function fails on any; never gives a silent 0."""
        if not samples:
            return []
        logs: list[dict[str, Any]] = [{} for _ in samples]
        size = 1 if self.shape.per_sample else len(samples)
        chunks = [range(start, start + size) for start in range(0, len(samples), size)]
        # All arguments come first, so that a row without what the function needs is told before any sample is judged.
        arguments = [self._arguments(chunk, samples, logs) for chunk in chunks]
        results: list[Any] = []
        for given in arguments:
            try:
                results.append(self.fn(**given))
            except (Exception, SystemExit) as error:  # sys.exit() in a reward must not end the run without a word
                results.append(error)
                break  # the samples behind it would be judged for nothing
        if any(inspect.isawaitable(result) for result in results):
            results = _wait(results)
        rewards: list[Reward] = []
        for chunk, given, result in zip(chunks, arguments, results, strict=False):
            rewards += self._read(result, chunk, samples, given)
        return [replace(r, logs={**log, **r.logs}) if log else r for r, log in zip(rewards, logs, strict=True)]

    @property
    def independent(self) -> bool:
        """Says whether each sample is judged on its own, so that one that hangs costs no other its verdict.

        A batch function sees a whole group, and so do coroutines, which wait together. An object that takes a list of
        samples says with an attribute `independent` that it needs only one at a time.
        """
        if self.shape.per_sample:
            called = vars(type(self.fn)).get("__call__")  # an object's, which may be a coroutine
            return not (inspect.iscoroutinefunction(self.fn) or inspect.iscoroutinefunction(called))
        return getattr(self.fn, "independent", False) is True

    @property
    def longest_s(self) -> float:
        """The seconds after which the reward itself gives up on a sample; 0 where it has no such limit."""
        return float(getattr(self.fn, "longest_s", 0.0) or 0.0)

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raises RewardError for a row that lacks what judging it needs, or whose task has no reward; judges none."""
        logs: list[dict[str, Any]] = [{} for _ in samples]
        for index in range(len(samples)):
            self._arguments(range(index, index + 1), samples, logs)
        if isinstance(self.fn, Checkable):
            try:
                self.fn.check_samples(samples)
            except RewardError:
                raise
            except (Exception, SystemExit) as error:
                raise self._failed(error, f"when it checked {len(samples)} samples") from error

    def close(self) -> None:
        """Lets go of the workers of a reward that has some; harmless on any other, and when repeated."""
        if isinstance(self.fn, Closable):
            try:
                self.fn.close()
            except RewardError:
                raise
            except (Exception, SystemExit) as error:
                raise self._failed(error, "when it was closed") from error

    def _shape(self) -> Shape:
        conversational = CONVERSATIONAL not in self.named and bool(self.settings.pop(CONVERSATIONAL, False))
        try:
            return SHAPES[self.forced] if self.forced else find_shape(self.named, conversational)
        except RewardError as error:
            raise RewardError(f"reward {self.name!r} {error}") from None

    def _construct(self, cls: type) -> Any:
        signature = _signature(cls, self.name)
        parameters = signature.parameters.values()
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            for key in self.kwargs.keys() - signature.parameters.keys():
                raise self._no_setting(key, set(signature.parameters))
        self._check_types(parameters)
        needed = {p.name for p in parameters if p.kind in _BY_NAME and p.default is inspect.Parameter.empty}
        if missing := ", ".join(sorted(needed - self.kwargs.keys())):
            raise RewardError(f"reward {self.name!r} needs {missing}; set it in reward.kwargs")
        try:
            return cls(**self.kwargs)
        except RewardError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's constructor does
            text = f"reward {self.name!r} cannot be made: "
            if isinstance(error, ValueError):  # its author says so to whoever sets it
                raise RewardError(f"{text}{error}") from error
            given = ", ".join(f"{key}={value!r}" for key, value in self.kwargs.items()) or "none"
            raise RewardError(f"{text}{described(error)}; check its settings ({given}) and its __init__") from error

    def _arguments(self, chunk: range, samples: Sequence[Sample], logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        own = [samples[index] for index in chunk]
        supplied = self.shape.arguments(own, [logs[index] for index in chunk])
        from_rows = self.required - supplied.keys() - self.settings.keys()
        for index in chunk if from_rows else ():
            sample = samples[index]
            there = sample.meta if self.shape.reads_rows else self.shape.arguments([sample], [{}])
            if missing := from_rows - there.keys():
                raise self._missing(missing, index, sample)
        columns = {**row_columns(self.shape, own), **supplied, **self.settings}
        return columns if self.takes_any else {key: value for key, value in columns.items() if key in self.named}

    def _read(self, result: Any, chunk: range, samples: Sequence[Sample], given: Mapping[str, Any]) -> list[Reward]:
        """Reads the rewards from what the function returned for a chunk of the samples; raises what it raised."""
        where = f"on {_where(chunk, samples)}"
        if isinstance(result, RewardError):  # a reward inside this one has failed, and has named itself
            raise result
        if isinstance(result, BaseException):
            raise self._failed(result, where, given) from result
        try:
            entries = self.shape.results(result, [samples[index] for index in chunk])
        except Exception as error:  # whatever the result does when it is read
            raise RewardError(
                f"reward {self.name!r} returned {str(result)[:80]!r}, which cannot be read as {self.shape.name} does "
                f"({type(error).__name__}: {error}); return a list of {len(chunk)} rewards, one for each completion"
            ) from error
        try:
            values = None if isinstance(entries, (str, Mapping)) else iter(entries)
        except TypeError:
            values = None
        try:
            values = None if values is None else list(values)
        except RewardError:
            raise
        except (Exception, SystemExit) as error:  # a function with `yield` runs only now
            raise self._failed(error, where, given) from error
        if values is None or len(values) != len(chunk):
            got = f"a {type(entries).__name__}" if values is None else f"{len(values)} values"
            raise RewardError(
                f"reward {self.name!r} must return a list of {len(chunk)} rewards, one for each completion, not {got}"
            )
        return [self._reward(value, samples, index) for index, value in zip(chunk, values, strict=True)]

    def _reward(self, entry: Any, samples: Sequence[Sample], index: int) -> Reward:
        reward, where = entry if isinstance(entry, Reward) else Reward(entry), _named(index, samples[index])
        for field, table in (("parts", reward.parts), ("logs", reward.logs)):
            if not isinstance(table, Mapping):
                raise RewardError(
                    f"reward {self.name!r} returned {field}={str(table)[:80]!r} for {where}; give a table of names and "
                    "numbers"
                )
        reward = replace(reward, reason=str(reward.reason or ""))
        if reward.value is None:
            return reward
        numbers = {name: self._finite(part, f"{where}, part {name!r}") for name, part in reward.parts.items()}
        return replace(reward, value=self._finite(reward.value, where), parts=numbers)

    def _finite(self, number: Any, where: str) -> float:
        try:
            value = math.nan if isinstance(number, (str, bytes)) else float(number)
        except Exception:  # a tensor of two numbers raises what it likes
            value = math.nan
        if not math.isfinite(value):
            raise RewardError(
                f"reward {self.name!r} returned {str(number)[:80]!r} for {where}; return a finite number, True "
                "or False, a rewards.Reward, or None for no verdict"
            )
        return value

    def _check_types(self, parameters: Iterable[inspect.Parameter]) -> None:
        """Raises RewardError for a setting that is not of its annotated type: "false" is text and not a bool."""
        for parameter in parameters:
            annotation = parameter.annotation
            written = annotation.__name__ if isinstance(annotation, type) else str(annotation)
            kind = written.removesuffix(" | None")
            if parameter.name not in self.kwargs or kind not in _TYPES:
                continue
            value, (accepted, words) = self.kwargs[parameter.name], _TYPES[kind]
            may_be_none = kind != written or parameter.default is None
            if value is None and may_be_none:
                continue
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
                raise RewardError(f"reward {self.name!r}: {parameter.name}={value!r} must be {words}")

    def _no_setting(self, key: str, known: set[str]) -> RewardError:
        near = get_close_matches(key, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return RewardError(
            f"reward {self.name!r} takes no setting {key!r}{hint}; it takes {', '.join(sorted(known)) or 'none'}"
        )

    def _missing(self, missing: set[str], index: int, sample: Sample) -> RewardError:
        columns = ", ".join(map(str, sample.meta)) or "none"
        return RewardError(
            f"reward {self.name!r} needs {', '.join(sorted(missing))}, which {_named(index, sample)} does not have "
            f"(its columns: {columns}); {self.shape.fix}"
        )

    def _failed(self, error: BaseException, where: str, given: Mapping[str, Any] | None = None) -> RewardError:
        """Makes the error that is raised in place of the exception of a user's function."""
        words = misread(self.shape, dict(given), self.named, error) if given else ""
        return RewardError(
            f"reward {self.name!r} raised {described(error)} ({where}{f'; {words}' if words else ''}); correct the "
            "function, or let it return None where there is no verdict"
        )


def _signature(target: Callable[..., Any], name: str) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except ValueError as error:  # functions written in C may have none
        raise RewardError(f"reward {name!r} has no readable signature: {error}; wrap it in a function") from error


def _wait(results: Sequence[Any]) -> list[Any]:
    """Await what is awaitable, all at once; an exception takes the place of its result.

    The event loop runs in a thread of its own. The caller's thread may have a loop running already, which allows no
    second one, and on the main thread asyncio would take over the caller's handler of Ctrl-C.
    """
    import asyncio  # here: it takes longer to import than the rest of the package

    async def one(result: Any) -> Any:
        try:
            return await result if inspect.isawaitable(result) else result
        except SystemExit as error:
            return error

    async def gather() -> list[Any]:
        return list(await asyncio.gather(*map(one, results), return_exceptions=True))

    done: Future[list[Any]] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(gather()))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="reward-asyncio", daemon=True).start()
    return done.result()


def _where(chunk: range, samples: Sequence[Sample]) -> str:
    if len(chunk) > 1:
        return f"a batch of {len(chunk)} samples"
    return _named(chunk.start, samples[chunk.start])


def _named(index: int, sample: Sample) -> str:
    return f"sample {index} (prompt {str(sample.prompt)[:60]!r})"
