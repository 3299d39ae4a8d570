"""What a reward sees, what it says, and how a plain function is called on a batch of samples."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

BATCH_PARAMETERS = ("prompts", "completions", "completion_ids", "completions_ids")
"""A function with any of these, and without `completion`, is called once per batch, as in TRL."""
TRL_ARGUMENTS = (*BATCH_PARAMETERS, "log_extra", "log_metric")
SAMPLE_PARAMETERS = ("prompt", "completion", "completion_ids", "finish_reason")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_SHAPES = (
    "write `def f(completion: str, answer: str, **columns) -> float | None` or, as in TRL, "
    "`def f(prompts, completions, **columns) -> list[float | None]`"
)


class RewardError(ValueError):
    """A reward function that cannot be found or called, or that returns no reward; the message says how to fix it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion to judge.

    Example: `Sample("3 + 4", "<think></think><answer>7</answer>", meta={"answer": "7"})`
    """

    prompt: str | Sequence[Mapping[str, Any]]
    """Text, or chat messages: then batch functions get each completion as a list of one message, as in TRL."""
    completion: str
    completion_ids: Sequence[int] = ()
    finish_reason: str = "stop"
    """"stop" or "length"."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The dataset row: its columns are the function's further arguments."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A verdict; `value=None` means none was reached, and the sample is left out of its group.

    Example: `Reward(1.0, "correct")`
    """

    value: float | None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    logs: Mapping[str, Any] = field(default_factory=dict)


class RewardFunction:
    """A user's function, called on a list of samples: `rewards.load(...)` returns one of these.

    Parameters are filled by name: from the bound `kwargs`, else from the sample, else from the columns of its row.
    It pickles as what `load` was given, so another process finds the function anew.
    """

    def __init__(self, fn: Callable[..., Any], given: str | Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        """Check the signature; raises RewardError if it fits neither shape or does not take `kwargs`."""
        self.fn, self.given, self.kwargs = fn, given, dict(kwargs)
        self.name = given if isinstance(given, str) else str(given)
        if not callable(fn):
            raise RewardError(f"reward {self.name!r} is a {type(fn).__name__}, not a function; {_SHAPES}")
        parameters = inspect.signature(fn).parameters.values()
        self.takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        self.named = {parameter.name for parameter in parameters if parameter.kind in _BY_NAME}
        self.required = {p.name for p in parameters if p.kind in _BY_NAME and p.default is inspect.Parameter.empty}
        self.per_sample = "completion" in self.named
        if not self.per_sample and self.named.isdisjoint(BATCH_PARAMETERS):
            raise RewardError(f"reward {self.name!r} has neither a parameter `completion` nor `completions`; {_SHAPES}")
        if self.per_sample and "completions" in self.named:
            raise RewardError(f"reward {self.name!r} has both `completion` and `completions`; {_SHAPES}")
        for key in kwargs:
            if key in BATCH_PARAMETERS + SAMPLE_PARAMETERS or not (self.takes_any or key in self.named):
                free = sorted(self.named - {*BATCH_PARAMETERS, *SAMPLE_PARAMETERS})
                raise RewardError(
                    f"reward {self.name!r} takes no setting {key!r}; it takes {', '.join(free) or 'none'}"
                )

    def __repr__(self) -> str:
        """The name and the settings."""
        return f"<reward {self.name!r} {self.kwargs}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a call of `rewards.load`."""
        from rewards.registry import reload

        return reload, (self.given, self.kwargs)

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judge every sample, in order; raises RewardError if the function fails on any, never a silent 0."""
        if not samples:
            return []
        return self._call_each(samples) if self.per_sample else self._call_batch(samples)

    def _call_each(self, samples: Sequence[Sample]) -> list[Reward]:
        results = []
        for index, sample in enumerate(samples):
            columns = {**sample.meta, **_sample_columns(sample), **self.kwargs}
            missing = self.required - columns.keys()
            if missing:
                raise self._missing(missing, index, sample)
            try:
                results.append(self.fn(**self._wanted(columns)))
            except Exception as error:
                raise self._failed(error, _where(index, sample)) from error
        if any(inspect.isawaitable(result) for result in results):
            results = self._wait(results)
        return [self._reward(result, _where(i, samples[i])) for i, result in enumerate(results)]

    def _call_batch(self, samples: Sequence[Sample]) -> list[Reward]:
        logs: list[dict[str, Any]] = [{} for _ in samples]
        columns = {**_batch_columns(samples, logs), **self.kwargs}
        from_rows = self.required - {*TRL_ARGUMENTS, *self.kwargs}
        for index, sample in enumerate(samples):
            if missing := from_rows - sample.meta.keys():
                raise self._missing(missing, index, sample)
        try:
            results = self.fn(**self._wanted(columns))
        except Exception as error:
            raise self._failed(error, f"a batch of {len(samples)} samples") from error
        if inspect.isawaitable(results):
            [results] = self._wait([results])
        rewards = [self._reward(r, _where(i, samples[i])) for i, r in enumerate(self._list(results, len(samples)))]
        return [replace(r, logs={**log, **r.logs}) if log else r for r, log in zip(rewards, logs, strict=True)]

    def _wanted(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        return columns if self.takes_any else {key: value for key, value in columns.items() if key in self.named}

    def _list(self, results: Any, num_samples: int) -> list[Any]:
        try:
            values = None if isinstance(results, (str, Mapping)) else list(results)
        except TypeError:
            values = None
        if values is None or len(values) != num_samples:
            got = f"a {type(results).__name__}" if values is None else f"{len(values)} values"
            raise RewardError(
                f"reward {self.name!r} must return a list of {num_samples} rewards, one for each completion, not {got}"
            )
        return values

    def _wait(self, results: Sequence[Any]) -> list[Any]:
        import asyncio  # here: it takes longer to import than the rest of the package

        async def gather() -> list[Any]:
            return list(await asyncio.gather(*results))

        try:
            return asyncio.run(gather())
        except Exception as error:
            raise self._failed(error, f"one of {len(results)} awaited results") from error

    def _reward(self, result: Any, where: str) -> Reward:
        reward = result if isinstance(result, Reward) else Reward(result)
        if reward.value is None:
            return reward
        try:
            value = math.nan if isinstance(reward.value, (str, bytes)) else float(reward.value)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            raise RewardError(
                f"reward {self.name!r} returned {str(reward.value)[:80]!r} for {where}; return a finite number, True "
                "or False, a rewards.Reward, or None for no verdict"
            )
        return replace(reward, value=value)

    def _missing(self, missing: set[str], index: int, sample: Sample) -> RewardError:
        columns = ", ".join(map(str, sample.meta)) or "none"
        return RewardError(
            f"reward {self.name!r} needs {', '.join(sorted(missing))}, which {_where(index, sample)} does not have "
            f"(its columns: {columns}); rename the parameter, give it a default, or set it in reward.kwargs"
        )

    def _failed(self, error: Exception, where: str) -> RewardError:
        return RewardError(
            f"reward {self.name!r} raised {type(error).__name__}: {error} (on {where}); correct the function, or let "
            "it return None where there is no verdict"
        )


def _sample_columns(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "completion": sample.completion,
        "completion_ids": sample.completion_ids,
        "finish_reason": sample.finish_reason,
    }


def _batch_columns(samples: Sequence[Sample], logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def log_extra(column: str, values: Iterable[Any]) -> None:
        for log, value in zip(logs, values, strict=True):
            log[column] = value

    def log_metric(name: str, value: float) -> None:
        log_extra(name, [value] * len(samples))

    ids = [list(sample.completion_ids) for sample in samples]
    # As in TRL: a column that only some rows have is None in the others, and `prompt` and `completion` are not columns.
    names = dict.fromkeys(name for sample in samples for name in sample.meta if name not in ("prompt", "completion"))
    return {name: [sample.meta.get(name) for sample in samples] for name in names} | {
        "prompts": [sample.prompt for sample in samples],
        "completions": [_as_trl(sample) for sample in samples],
        "completion_ids": ids,
        "completions_ids": ids,
        "log_extra": log_extra,
        "log_metric": log_metric,
    }


def _as_trl(sample: Sample) -> Any:
    is_chat = not isinstance(sample.prompt, str)
    return [{"role": "assistant", "content": sample.completion}] if is_chat else sample.completion


def _where(index: int, sample: Sample) -> str:
    return f"sample {index} (prompt {str(sample.prompt)[:60]!r})"
