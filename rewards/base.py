"""What a reward sees, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class RewardError(ValueError):
    """A reward cannot be found or called, or returns something that is not a reward; the message says how to fix it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion to judge.

    Example: `Sample("3 + 4", "<think></think><answer>7</answer>", meta={"answer": "7"})`
    """

    prompt: str | Sequence[Mapping[str, Any]]
    """Text, or chat messages; with these, batch functions get each completion as a list of one message, as in TRL."""
    completion: str
    completion_ids: Sequence[int] = ()
    finish_reason: str = "stop"
    """"stop" or "length"."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The dataset row; its columns are further arguments of the function."""
    step: int | None = None
    """Steps that the policy had learned when it wrote this (TRL's `trainer_state.global_step`); None outside a run."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What reward models have said of it, by `rewards.model_score.Asked.key`; {} outside a run that asks any."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A verdict; `value=None` means that none was reached, and the sample is left out of its group.

    Example: `Reward(1.0, "correct")`
    """

    value: float | None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    logs: Mapping[str, Any] = field(default_factory=dict)


def thought_is_open(prompt: str | Sequence[Mapping[str, Any]]) -> bool:
    """Says whether the prompt ends inside a `<think>`, opened by the chat template and not by the completion."""
    if isinstance(prompt, str):
        return prompt.rstrip().endswith("<think>")
    last = prompt[-1] if prompt else {}
    return last.get("role") == "assistant" and str(last.get("content", "")).rstrip().endswith("<think>")
