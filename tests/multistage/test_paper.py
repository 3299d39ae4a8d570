"""R1-Zero at the paper's size against one table of the numbers that were published."""

from __future__ import annotations

from functools import cache

import pytest

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.multistage.settings import read_settings

PUBLISHED: dict[str, float] = {
    "learning rate": 3e-6,
    "coefficient of the KL penalty": 0.001,
    "temperature of rollouts": 1.0,
    "questions of an optimiser step": 32,
    "outputs of a question": 16,
    "outputs of a rollout": 8192,
    "minibatches of a rollout": 16,
    "optimiser steps until the reference is replaced": 400,
    "optimiser steps": 10_400,
    "longest output, until step 8,200": 32_768,
}
"""arXiv:2501.12948v2, section 2.1 and the supplement on training."""


@cache
def paper() -> GrpoRun:
    """What the stage `rl` runs with; the words that all stages share are all keys of GRPO."""
    cfg = read_settings("r1_zero", ["size=paper", "base=/models/base"])
    return load_config("grpo", GrpoRun, [*cfg.shared, *cfg.stages["rl"], f"model.path={cfg.base}"])


def ours() -> dict[str, float]:
    """One of our steps is a rollout of theirs, dealt to minibatches of one optimiser step each."""
    algo = paper().algo
    outputs = algo.prompts_per_step * algo.group_size
    return {
        "learning rate": algo.schedule.lr,
        "coefficient of the KL penalty": algo.loss.kl_coef,
        "temperature of rollouts": algo.sampling.temperature,
        "questions of an optimiser step": outputs / algo.minibatches / algo.group_size,
        "outputs of a question": algo.group_size,
        "outputs of a rollout": outputs,
        "minibatches of a rollout": algo.minibatches,
        "optimiser steps until the reference is replaced": algo.refresh_reference_every * algo.minibatches,
        "optimiser steps": algo.steps * algo.minibatches,
        "longest output, until step 8,200": algo.sampling.max_new_tokens,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number(name: str) -> None:
    assert ours()[name] == PUBLISHED[name]


def test_the_learning_rate_stays_as_it_is() -> None:
    schedule = paper().algo.schedule
    assert (schedule.warmup_steps, schedule.kind, schedule.final_ratio) == (0, "constant", 1.0)


def test_rules_alone_judge_accuracy_and_format() -> None:
    cfg = paper()
    assert (cfg.reward.fn, cfg.reward.kwargs["rewards"]) == ("composite", ["math", "format"])
    assert cfg.reward.models == [] and cfg.needs_reference


def test_every_output_has_room_and_is_learned_from_whole() -> None:
    cfg = paper()
    assert cfg.engine.max_model_len - cfg.algo.sampling.max_new_tokens == 1024, "for a question"
    assert cfg.trainer.max_tokens >= cfg.engine.max_model_len
    assert cfg.longest_completion == 32_768 and cfg.algo.sampling.top_p == 1.0


def test_the_shape_comes_from_the_base() -> None:
    model = paper().model
    assert (model.kind, model.path, model.architecture) == ("deepseek", "/models/base", None)
    assert paper().trainer.dtype == paper().engine.dtype == "bf16"
