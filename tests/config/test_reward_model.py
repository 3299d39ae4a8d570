"""What a reward model may be told, and what it refuses before it looks at any file."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit.algo.schedule import Schedule
from rlkit.config import LoraConfig
from rlkit.config.reward_model import RewardModelConfig
from rlkit.errors import UserError
from tests.config.variants import but, default


def settings(**values: Any) -> RewardModelConfig:
    given: dict[str, Any] = {
        "kind": "pairwise",
        "steps": 3,
        "batch_size": 2,
        "chosen_column": "chosen",
        "rejected_column": "rejected",
        "completion_column": "completion",
        "label_column": "label",
        "max_length": 32,
        "schedule": Schedule(lr=1e-3, warmup_steps=0, kind="constant", final_ratio=1.0),
    }
    return RewardModelConfig(**given | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "ranked"}, "reward_model.kind='ranked' is unknown; use pairwise or pointwise"),
        ({"kind": "pairwse"}, "reward_model.kind='pairwse' is unknown; use pairwise or pointwise (did you mean"),
        ({"steps": -1}, "reward_model.steps=-1 must be at least 0"),
        ({"steps": 2.0}, "reward_model.steps=2.0 must be a whole number, at least 0"),
        ({"batch_size": 0}, "reward_model.batch_size=0 must be at least 1"),
        ({"batch_size": True}, "reward_model.batch_size=True must be a whole number"),
        ({"max_length": 1}, "reward_model.max_length=1 must be at least 2"),
        ({"max_length": 2**31}, "reward_model.max_length=2147483648 must be at most 2147483647"),
    ],
)
def test_settings_of_the_stage(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        settings(**values)
    assert message in str(refused.value)


def test_the_smallest_stage_is_allowed() -> None:
    assert settings(kind="pointwise", steps=0, batch_size=1, max_length=2).kind == "pointwise"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.kind": "hf", "model.architecture": None},
         ["model.kind='hf': recipe reward_model puts a head on our own class alone", "use model=deepseek_v3_tiny"]),
        ({"model.path": ""},
         ["model.path='': a reward model starts from the checkpoint of an SFT run", "set model.path=FOLDER"]),
        ({"trainer.num_ranks": 2, "trainer.pipeline": 2},
         ["trainer.pipeline=2 with recipe reward_model: the head that scores is not spread over stages",
          "set trainer.pipeline=1"]),
        ({"trainer.dtype": "fp8"},
         ["trainer.dtype=fp8 with recipe reward_model: a head that scores was not tried over FP8",
          "set trainer.dtype=bf16"]),
        ({"trainer.dtype": "fp8_weights"}, ["trainer.dtype=fp8_weights with recipe reward_model"]),
        ({"trainer.num_ranks": 3},
         ["reward_model.batch_size=64 cannot be dealt evenly to trainer.num_ranks=3; use a multiple of it"]),
        ({"cluster.kind": "local", "trainer.num_ranks": 2},
         ["cluster=local is one process, but trainer.num_ranks=2; set it to 1 or use cluster=ray"]),
        ({"resume": "always"}, ["resume='always' is unknown; use auto or never"]),
        ({"seed": -3}, ["seed=-3 must be at least 0"]),
    ],
)  # fmt: skip
def test_what_no_head_can_do(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        but(default("reward_model"), changes)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer.dtype": "bf16"},
        {"trainer.dtype": "fp32"},
        {"trainer.num_ranks": 3, "reward_model.batch_size": 63},
        {"cluster.kind": "local", "trainer.kind": "torch"},
        {"trainer.lora": LoraConfig()},
        {"data.eval_size": 0},
        {"model.architecture": None},
    ],
)
def test_what_it_can(changes: dict[str, Any]) -> None:
    assert not but(default("reward_model"), changes).needs_reference
