"""How functions written for rlkit, TRL, verl and OpenRLHF are called: their parameter names tell the shape.

Each library calls its rewards in a way of its own, with other names, for one completion or for many, and reads the
result in another way. A `Shape` holds all that differs. What is not covered: verl's batched reward managers, OpenRLHF's
remote reward servers, and TRL's environments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from rewards.base import Reward, RewardError, Sample
from rewards.failure import MISREAD, given

Columns = dict[str, Any]
Logs = Sequence[dict[str, Any]]
"""One dictionary for each sample, which a function may fill while it runs."""
Chunk = Sequence[Sample]
"""The samples of one call: one sample, or a whole batch."""

WAYS = (
    "write `def f(completion: str, answer: str, **columns) -> float | None` or, as in TRL, "
    "`def f(prompts, completions, **columns) -> list[float | None]`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One way to call a reward function.

    Example: TRL's functions are marked by `completions`, called once for a batch, and return a list.
    """

    name: str
    marks: tuple[str, ...]
    """A function with any of these parameters has this shape."""
    per_sample: bool
    reads_rows: bool
    """Whether the columns of the dataset row are arguments too."""
    supplied: frozenset[str]
    """The names of `arguments`; no setting may have one of them."""
    arguments: Callable[[Chunk, Logs], Columns]
    """Gives what the caller supplies, by parameter name."""
    results: Callable[[Any, Chunk], Any]
    """Makes one entry for each sample of what the function returned."""
    fix: str = "rename the parameter, give it a default, or set it in reward.kwargs"
    """What to do when a sample lacks something that the function needs."""
    sources: str = ""
    """Where the arguments come from, for a function that fails on them because it takes them for something else."""


def find_shape(named: set[str], conversational: bool) -> Shape:
    """Finds the shape of a function with these parameters.

    Raises RewardError if none fits, or more than one; its text is meant to follow the name of the reward.
    """
    found = [shape for shape in (PLAIN, TRL, SAMPLES, VERL, OPENRLHF) if not named.isdisjoint(shape.marks)]
    marks = [next(mark for mark in shape.marks if mark in named) for shape in found]
    if len(found) > 1:
        pairs = " and ".join(f"`{mark}` as in {shape.name}" for mark, shape in zip(marks, found, strict=True))
        columns = "if one of them is a column of your rows, say which shape is meant by rewards.from_trl, from_verl or"
        raise RewardError(f"has both {pairs}; {columns} from_openrlhf, else {WAYS}")
    if "solution_strs" in named:
        raise RewardError(
            "takes lists, as for verl's batched reward manager; write it for one sample, with `data_source`, "
            "`solution_str`, `ground_truth` and `extra_info`"
        )
    if not found and named.isdisjoint(("prompts", "completion_ids")):
        wrapped = "; one that takes all by **kwargs is loaded with rewards.from_trl, from_verl or from_openrlhf"
        raise RewardError(f"has neither a parameter `completion` nor `completions`; {WAYS}{wrapped}")
    shape = found[0] if found else TRL
    if conversational and shape is not TRL:
        raise RewardError(f"takes no setting 'conversational', which is for functions in TRL's shape; {WAYS}")
    return TRL_CHAT if conversational else shape


def misread(shape: Shape, arguments: Columns, named: set[str], error: BaseException) -> str:
    """Says what a function was given whose exception looks as if it took that for something else; "" for any other.

    TRL's own examples come in two kinds, for completions that are texts and for completions that are lists of chat
    messages, and their parameters do not tell which. The exception does: it complains of a `str`, or of a `list`.
    """
    if not isinstance(error, MISREAD):
        return ""
    shown = {name: value for name, value in arguments.items() if name in named}
    words = f"it was given: {given(shown or arguments)}"  # one of nothing but **kwargs names none
    kinds = {type(arguments[name][0]) for name in ("completions", "prompts") if arguments.get(name)}
    if str in kinds and shape.name == TRL.name and re.search("str|dictionary update", str(error)):
        return (
            f"{words}; if it reads chat messages, set conversational=true (in a run reward.kwargs.conversational=true)"
        )
    if list in kinds and "list" in str(error):
        why = "conversational=true is set" if shape.name == TRL_CHAT.name else "the prompts are chat messages"
        return f"{words}; {why}, so each completion is a list of one message: read completion[0]['content']"
    return f"{words}{f'; {shape.sources}' if shape.sources else ''}"


def text_of(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Returns a prompt as text: the contents of chat messages stand one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(str(message.get("content", "")) for message in prompt)


def row_columns(shape: Shape, chunk: Chunk) -> Columns:
    """Turns dataset rows into arguments: into values for a single sample, into lists for a batch."""
    if not shape.reads_rows:
        return {}
    if shape.per_sample:
        return dict(chunk[0].meta)
    # As in TRL, a column that only some rows have is None in the others, and `prompt` and `completion` are not columns.
    names = dict.fromkeys(name for sample in chunk for name in sample.meta if name not in ("prompt", "completion"))
    return {name: [sample.meta.get(name) for sample in chunk] for name in names}


def _as_given(result: Any, chunk: Chunk) -> Any:
    return [result]


def _whole_batch(result: Any, chunk: Chunk) -> Any:
    return result


def _plain(chunk: Chunk, logs: Logs) -> Columns:
    [sample] = chunk
    return {
        "prompt": sample.prompt,
        "completion": sample.completion,
        "completion_ids": sample.completion_ids,
        "finish_reason": sample.finish_reason,
    }


def _samples(chunk: Chunk, logs: Logs) -> Columns:
    return {"samples": chunk}


def _trl(chunk: Chunk, logs: Logs) -> Columns:
    return _trl_arguments(chunk, logs, is_chat=[not isinstance(sample.prompt, str) for sample in chunk])


def _trl_chat(chunk: Chunk, logs: Logs) -> Columns:
    return _trl_arguments(chunk, logs, is_chat=[True] * len(chunk))


def _trl_arguments(chunk: Chunk, logs: Logs, is_chat: Sequence[bool]) -> Columns:
    def log_extra(column: str, values: Iterable[Any]) -> None:
        for log, value in zip(logs, values, strict=True):
            log[column] = value

    def log_metric(name: str, value: float) -> None:
        log_extra(name, [value] * len(chunk))

    ids = [list(sample.completion_ids) for sample in chunk]
    arguments: Columns = {
        "prompts": [
            [{"role": "user", "content": sample.prompt}] if chat and isinstance(sample.prompt, str) else sample.prompt
            for sample, chat in zip(chunk, is_chat, strict=True)
        ],
        "completions": [
            [{"role": "assistant", "content": sample.completion}] if chat else sample.completion
            for sample, chat in zip(chunk, is_chat, strict=True)
        ],
        "completion_ids": ids,
        "completions_ids": ids,
        "log_extra": log_extra,
        "log_metric": log_metric,
    }
    if (step := chunk[0].step) is not None:
        arguments["trainer_state"] = SimpleNamespace(global_step=step)
    return arguments


def _verl(chunk: Chunk, logs: Logs) -> Columns:
    [sample] = chunk
    arguments: Columns = {
        "solution_str": sample.completion,
        "extra_info": dict(sample.meta.get("extra_info") or {}),
    }
    if "data_source" in sample.meta:  # "" in its place would fit no branch of the function: a silent 0
        arguments["data_source"] = sample.meta["data_source"]
    nested = sample.meta.get("reward_model")  # as in verl's parquet files
    rows = [nested, sample.meta] if isinstance(nested, Mapping) else [sample.meta]
    golds = [row[name] for row in rows for name in ("ground_truth", "answer") if name in row]
    return arguments | ({"ground_truth": golds[0]} if golds else {})


def _verl_result(result: Any, chunk: Chunk) -> Any:
    if isinstance(result, Mapping) and "score" in result:
        return [Reward(result["score"], logs={key: value for key, value in result.items() if key != "score"})]
    return [result]


def _openrlhf(chunk: Chunk, logs: Logs) -> Columns:
    prompts = [text_of(sample.prompt) for sample in chunk]
    arguments: Columns = {
        "queries": [prompt + sample.completion for prompt, sample in zip(prompts, chunk, strict=True)],
        "prompts": prompts,
    }
    golds = [[sample.meta[name] for name in ("label", "answer") if name in sample.meta] for sample in chunk]
    return arguments | ({"labels": [gold[0] for gold in golds]} if all(golds) else {})


def _openrlhf_results(result: Any, chunk: Chunk) -> Any:
    if not isinstance(result, Mapping) or "rewards" not in result:
        return result
    values = list(result["rewards"])
    scores = [{"score": score} for score in _for_each(result.get("scores"), chunk)]
    logs: list[dict[str, Any]] = [{} for _ in chunk]
    for name, column in (result.get("extra_logs") or {}).items():
        for log, value in zip(logs, _for_each(column, chunk), strict=True):
            log[name] = value
    if len(values) != len(chunk):
        return values
    parts = scores if result.get("scores") is not None else [{} for _ in chunk]
    return [Reward(value, parts=part, logs=log) for value, part, log in zip(values, parts, logs, strict=True)]


def _for_each(column: Any, chunk: Chunk) -> list[Any]:
    """Gives one value for each sample, from a list or tensor of as many, or from one value that holds for all."""
    try:
        values = [column] if isinstance(column, str) else list(column)
    except TypeError:  # a number, or a tensor of one
        values = [column]
    return values if len(values) == len(chunk) else [column] * len(chunk)


PLAIN = Shape(
    name="rlkit",
    marks=("completion",),
    per_sample=True,
    reads_rows=True,
    supplied=frozenset(("prompt", "completion", "completion_ids", "finish_reason")),
    arguments=_plain,
    results=_as_given,
)
_TRL_BATCH = ("prompts", "completions", "completion_ids", "completions_ids")
SAMPLES = Shape(
    name="rlkit, batch",
    marks=("samples",),
    per_sample=False,
    reads_rows=False,
    supplied=frozenset(("samples",)),
    arguments=_samples,
    results=_whole_batch,
)
TRL = Shape(
    name="TRL",
    marks=("completions", "completions_ids"),
    per_sample=False,
    reads_rows=True,
    supplied=frozenset((*_TRL_BATCH, "trainer_state", "log_extra", "log_metric")),
    arguments=_trl,
    results=_whole_batch,
)
TRL_CHAT = replace(TRL, name="TRL, conversational", arguments=_trl_chat)
VERL = Shape(
    name="verl",
    marks=("solution_str",),
    per_sample=True,
    reads_rows=False,
    supplied=frozenset(("solution_str", "ground_truth", "extra_info")),  # `data_source` may be a setting
    arguments=_verl,
    results=_verl_result,
    fix="give the rows `ground_truth` or `answer`, and `data_source` (or set reward.kwargs.data_source)",
    sources="ground_truth is the row's reward_model.ground_truth, else its ground_truth, else the text of its answer; "
    "extra_info is the row's column of that name",
)
OPENRLHF = Shape(
    name="OpenRLHF",
    marks=("queries",),
    per_sample=False,
    reads_rows=False,
    supplied=frozenset(("queries", "prompts", "labels")),
    arguments=_openrlhf,
    results=_openrlhf_results,
    fix="give every row `label` or `answer`",
    sources="a query is the prompt and the completion in one text; labels are the rows' label, else their answer",
)
SHAPES = {shape.name: shape for shape in (PLAIN, TRL, SAMPLES, VERL, OPENRLHF, TRL_CHAT)}
