"""The paper's size of every pipeline against one table of the numbers that were published."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from rlkit.config import BaseRun, DistillRun, GrpoRun, SftRun
from rlkit.config.compose import load_config
from rlkit.config.reward_model import RewardModelRun
from rlkit.multistage.settings import read_settings

ZERO = "arXiv:2501.12948v2, section 2.1 and the supplement on training"
R1 = "arXiv:2501.12948v2, section 2.3 and the supplement on training; Nature s41586-025-09422-z, Methods"
STUDENTS = "arXiv:2501.12948v2, supplement on distillation"
V3 = "arXiv:2412.19437, section 5.1"
R1S = "not published; R1's"
R1_ZEROS = "not published; R1-Zero's"
MEASURED = "not published; as R1 is measured"
OURS = "not published; ours"
PUBLISHED: dict[tuple[str, str, str], tuple[float, str]] = {
    ("r1_zero", "rl", "learning rate"): (3e-6, ZERO),
    ("r1_zero", "rl", "coefficient of the KL penalty"): (0.001, ZERO),
    ("r1_zero", "rl", "temperature of rollouts"): (1.0, ZERO),
    ("r1_zero", "rl", "questions of an optimiser step"): (32, ZERO),
    ("r1_zero", "rl", "outputs of a question"): (16, ZERO),
    ("r1_zero", "rl", "outputs of a rollout"): (8192, ZERO),
    ("r1_zero", "rl", "minibatches of a rollout"): (16, ZERO),
    ("r1_zero", "rl", "optimiser steps until the reference is replaced"): (400, ZERO),
    ("r1_zero", "rl", "optimiser steps"): (10_400, ZERO),
    ("r1_zero", "rl", "longest output"): (32_768, ZERO),  # until step 8,200
    ("r1", "cold_start", "learning rate"): (5e-5, R1),
    ("r1", "cold_start", "last learning rate"): (5e-6, R1),
    ("r1", "cold_start", "epochs"): (2, R1),  # 2 to 3
    ("r1", "cold_start", "batch"): (128, R1),
    ("r1", "reasoning_rl", "learning rate"): (3e-6, R1),
    ("r1", "reasoning_rl", "coefficient of the KL penalty"): (0.001, R1),
    ("r1", "reasoning_rl", "clip ratio below"): (10, R1),
    ("r1", "reasoning_rl", "clip ratio above"): (10, R1),
    ("r1", "reasoning_rl", "temperature of rollouts"): (1.0, R1),
    ("r1", "reasoning_rl", "questions of an optimiser step"): (32, R1),
    ("r1", "reasoning_rl", "outputs of a question"): (16, R1),
    ("r1", "reasoning_rl", "outputs of a rollout"): (8192, R1),
    ("r1", "reasoning_rl", "minibatches of a rollout"): (16, R1),
    ("r1", "reasoning_rl", "optimiser steps until the reference is replaced"): (400, R1),
    ("r1", "reasoning_rl", "longest output"): (32_768, R1),
    ("r1", "sft_again", "learning rate"): (5e-5, R1),
    ("r1", "sft_again", "last learning rate"): (5e-6, R1),
    ("r1", "sft_again", "epochs"): (2, R1),  # 2 to 3
    ("r1", "sft_again", "batch"): (128, R1),
    ("r1", "sft_again", "rows of reasoning to one of another kind"): (600_000 / 200_000, R1),
    ("r1", "reasoning_rl", "optimiser steps"): (10_400, R1_ZEROS),
    ("r1", "rejection_sampling", "temperature of answers"): (0.6, MEASURED),
    ("r1", "rejection_sampling", "nucleus of answers"): (0.95, MEASURED),
    ("r1", "rejection_sampling", "longest output"): (32_768, MEASURED),
    ("r1", "preferences", "votes on a pair"): (4, R1),
    ("r1", "reward_model", "learning rate"): (6e-6, R1),
    ("r1", "reward_model", "pairs of a step"): (256, R1),
    ("r1", "reward_model", "pairs"): (66_000, R1),  # one epoch
    ("r1", "reward_model", "longest sample"): (8192, R1),
    ("r1", "all_scenarios_rl", "learning rate"): (3e-6, R1),
    ("r1", "all_scenarios_rl", "coefficient of the KL penalty"): (0.001, R1),
    ("r1", "all_scenarios_rl", "clip ratio below"): (10, R1),
    ("r1", "all_scenarios_rl", "clip ratio above"): (10, R1),
    ("r1", "all_scenarios_rl", "temperature of rollouts"): (0.7, R1),
    ("r1", "all_scenarios_rl", "questions of an optimiser step"): (32, R1),
    ("r1", "all_scenarios_rl", "outputs of a question"): (16, R1),
    ("r1", "all_scenarios_rl", "outputs of a rollout"): (8192, R1),
    ("r1", "all_scenarios_rl", "minibatches of a rollout"): (16, R1),
    ("r1", "all_scenarios_rl", "optimiser steps until the reference is replaced"): (400, R1),
    ("r1", "all_scenarios_rl", "longest output"): (32_768, R1),
    ("r1", "all_scenarios_rl", "optimiser steps"): (400, R1),  # of 1,700, those with preferences
    ("v3_post", "expert_sft", "learning rate"): (5e-6, V3),
    ("v3_post", "expert_sft", "last learning rate"): (1e-6, V3),
    ("v3_post", "expert_sft", "epochs"): (2, V3),
    ("v3_post", "expert_sft", "batch"): (128, R1S),
    ("v3_post", "expert_rl", "learning rate"): (3e-6, R1S),
    ("v3_post", "expert_rl", "coefficient of the KL penalty"): (0.001, R1S),
    ("v3_post", "expert_rl", "questions of an optimiser step"): (32, R1S),
    ("v3_post", "expert_rl", "outputs of a question"): (16, R1S),
    ("v3_post", "expert_rl", "longest output"): (32_768, R1S),
    ("v3_post", "expert_rl", "temperature of rollouts"): (1.2, OURS),  # "high" (V3, section 5.1)
    ("v3_post", "expert_rl", "optimiser steps"): (400, OURS),  # "hundreds" (V3, section 5.1)
    ("v3_post", "rejection_sampling", "temperature of answers"): (0.6, R1S),
    ("v3_post", "rejection_sampling", "nucleus of answers"): (0.95, R1S),
    ("v3_post", "rejection_sampling", "longest output"): (32_768, R1S),
    ("v3_post", "general_sft", "batch"): (128, R1S),
    ("v3_post", "reward_model", "learning rate"): (6e-6, R1S),
    ("v3_post", "reward_model", "pairs of a step"): (256, R1S),
    ("v3_post", "reward_model", "pairs"): (66_000, R1S),
    ("v3_post", "reward_model", "longest sample"): (8192, R1S),
    ("v3_post", "rl", "learning rate"): (3e-6, R1S),
    ("v3_post", "rl", "coefficient of the KL penalty"): (0.001, R1S),
    ("v3_post", "rl", "temperature of rollouts"): (1.0, R1S),
    ("v3_post", "rl", "questions of an optimiser step"): (32, R1S),
    ("v3_post", "rl", "outputs of a question"): (16, R1S),
    ("v3_post", "rl", "longest output"): (8192, V3),  # as V3 is measured
    ("v3_post", "rl", "optimiser steps"): (400, R1S),  # those of R1 with preferences
    ("v3_post", "general_sft", "learning rate"): (5e-6, V3),
    ("v3_post", "general_sft", "last learning rate"): (1e-6, V3),
    ("v3_post", "general_sft", "epochs"): (2, V3),
    ("distill", "student", "learning rate"): (8e-5, STUDENTS),  # of Qwen2.5-Math-7B
    ("distill", "student", "last learning rate"): (8e-6, STUDENTS),
    ("distill", "student", "epochs"): (2, STUDENTS),  # 2 to 3
    ("distill", "student", "batch"): (64, STUDENTS),
}
"""(pipeline, stage, what) -> the number, and where it stands, or what it is in the place of."""
RECIPES: dict[str, tuple[str, type[BaseRun]]] = {
    "cold_start": ("sft", SftRun),
    "reasoning_rl": ("grpo", GrpoRun),
    "rejection_sampling": ("distill_generate", DistillRun),
    "sft_again": ("sft", SftRun),
    "preferences": ("distill_generate", DistillRun),
    "reward_model": ("reward_model", RewardModelRun),
    "all_scenarios_rl": ("grpo", GrpoRun),
    "rl": ("grpo", GrpoRun),
    "expert_sft": ("sft", SftRun),
    "expert_rl": ("grpo", GrpoRun),
    "general_sft": ("sft", SftRun),
    "generate": ("distill_generate", DistillRun),
    "student": ("sft", SftRun),
}
JUDGE = ["preferences.reward.kwargs.endpoint=http://h:1/v1", "preferences.reward.kwargs.model=v3"]
OWN_FILES = {
    "r1_zero": [],
    "r1": [
        *JUDGE,
        "cold_start.data.source=a.jsonl",
        "sft_again.data.mixture.1.source=b.jsonl",
        "preferences.data.source=c.jsonl",
        "all_scenarios_rl.data.source=d.jsonl",
    ],
    "v3_post": [
        *JUDGE,
        "expert_sft.data.mixture.0.source=a.jsonl",
        "expert_sft.data.mixture.1.source=a.jsonl",
        "general_sft.data.mixture.1.source=b.jsonl",
        "preferences.data.source=c.jsonl",
        "rl.data.source=d.jsonl",
    ],
    "distill": ["generate.data.source=a.jsonl"],
}
"""What the person who runs it has to name."""


@cache
def paper(pipeline: str, stage: str, size: str = "paper") -> Any:
    """What a stage of the paper's size runs with."""
    cfg = read_settings(
        pipeline, [f"size={size}", "base=/models/base", *(OWN_FILES[pipeline] if size == "paper" else [])]
    )
    recipe, cls = RECIPES[stage]
    links = {"kept": "kept", "scorer": "scorer", "model.path": "/models/base"}
    used = {name: path for name, path in links.items() if "." in name or f"${{{name}}}" in "".join(cfg.stages[stage])}
    if stage == "reward_model":
        used["data.source"] = "pairs"
    return load_config(recipe, cls, cfg.words(stage, recipe, 1, used))  # pyright: ignore[reportArgumentType]


def ours(cfg: Any) -> dict[str, float]:
    """One of our steps is a rollout of theirs, dealt to minibatches of one optimiser step each."""
    if isinstance(cfg, GrpoRun):
        algo = cfg.algo
        outputs = algo.prompts_per_step * algo.group_size
        return {
            "learning rate": algo.schedule.lr,
            "coefficient of the KL penalty": algo.loss.kl_coef,
            "clip ratio below": algo.loss.clip_low,
            "clip ratio above": algo.loss.clip_high,
            "temperature of rollouts": algo.sampling.temperature,
            "questions of an optimiser step": outputs / algo.minibatches / algo.group_size,
            "outputs of a question": algo.group_size,
            "outputs of a rollout": outputs,
            "minibatches of a rollout": algo.minibatches,
            "optimiser steps until the reference is replaced": algo.refresh_reference_every * algo.minibatches,
            "optimiser steps": algo.steps * algo.minibatches,
            "longest output": algo.sampling.max_new_tokens,
        }
    if isinstance(cfg, SftRun):
        schedule, weights = cfg.sft.schedule, [part.weight for part in cfg.data.mixture]
        return {
            "learning rate": schedule.lr,
            "last learning rate": pytest.approx(schedule.lr * schedule.final_ratio),
            "epochs": cfg.sft.epochs,
            "batch": cfg.sft.batch_size,
            "rows of reasoning to one of another kind": weights[0] / weights[-1] if weights else 0.0,
        }
    if isinstance(cfg, RewardModelRun):
        learn = cfg.reward_model
        return {
            "learning rate": learn.schedule.lr,
            "pairs of a step": learn.batch_size,
            "pairs": pytest.approx(learn.steps * learn.batch_size, abs=learn.batch_size),
            "longest sample": learn.max_length,
        }
    return {
        "votes on a pair": cfg.reward.kwargs.get("votes", 0),
        "temperature of answers": cfg.sampling.temperature,
        "nucleus of answers": cfg.sampling.top_p,
        "longest output": cfg.sampling.max_new_tokens,
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "paper"])
@pytest.mark.parametrize("pipeline", OWN_FILES)
def test_the_settings_of_every_stage_are_in_order(pipeline: str, size: str) -> None:
    cfg = read_settings(pipeline, [f"size={size}"])
    found = {stage: paper(pipeline, stage, size) for stage in cfg.stages if stage != "base"}
    assert found and all(isinstance(run, RECIPES[stage][1]) for stage, run in found.items())


@pytest.mark.parametrize(("pipeline", "stage", "what"), PUBLISHED)
def test_the_published_number(pipeline: str, stage: str, what: str) -> None:
    number, _ = PUBLISHED[pipeline, stage, what]
    assert ours(paper(pipeline, stage))[what] == number


@pytest.mark.parametrize(
    ("pipeline", "stage"), [("r1", "reasoning_rl"), ("r1", "all_scenarios_rl"), ("distill", "student")]
)
def test_models_are_measured_as_r1_was(pipeline: str, stage: str) -> None:
    sampling = paper(pipeline, stage).evaluation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.6, 0.95, 32_768)


def test_v3s_models_are_measured_as_long_as_v3_was() -> None:
    stages = ("expert_sft", "expert_rl", "general_sft", "rl")
    assert {paper("v3_post", stage).evaluation.sampling.max_new_tokens for stage in stages} == {8192}


@pytest.mark.parametrize(("pipeline", "stage"), [("r1_zero", "rl"), ("r1", "reasoning_rl"), ("r1", "all_scenarios_rl")])
def test_the_learning_rate_stays_as_it_is(pipeline: str, stage: str) -> None:
    schedule = paper(pipeline, stage).algo.schedule
    assert (schedule.warmup_steps, schedule.kind, schedule.final_ratio) == (0, "constant", 1.0)


def test_the_learning_rate_of_sft_falls_along_a_cosine() -> None:
    for pipeline, stage in [
        ("r1", "cold_start"),
        ("r1", "sft_again"),
        ("v3_post", "expert_sft"),
        ("v3_post", "general_sft"),
        ("distill", "student"),
    ]:
        assert paper(pipeline, stage).sft.schedule.kind == "cosine"


def test_which_rewards_judge() -> None:
    zero, first, last = paper("r1_zero", "rl"), paper("r1", "reasoning_rl"), paper("r1", "all_scenarios_rl")
    assert (zero.reward.fn, zero.reward.kwargs["rewards"]) == ("composite", ["math", "format"])
    assert first.reward.kwargs["rewards"] == ["math", "format", "language"], "summed (R1, section 2.3.2)"
    assert zero.reward.models == first.reward.models == [] and zero.needs_reference
    routes = last.reward.kwargs["rewards"]
    assert routes == {"reasoning": ["math", "format", "language"], "general": ["model:scorer", "format", "language"]}
    assert [asked.name for asked in last.reward.models] == [
        asked.name for asked in paper("v3_post", "rl").reward.models
    ]


def test_v3s_expert_is_shown_two_views_and_sampled_hot() -> None:
    plain, reflecting = paper("v3_post", "expert_sft").data.mixture
    assert plain.response_column != reflecting.response_column and plain.source == reflecting.source
    assert reflecting.system_prompt and not plain.system_prompt
    assert paper("v3_post", "expert_rl").algo.sampling.temperature > 1


@pytest.mark.parametrize(("pipeline", "stage"), [("r1_zero", "rl"), ("r1", "reasoning_rl"), ("r1", "all_scenarios_rl")])
def test_every_output_has_room_and_is_learned_from_whole(pipeline: str, stage: str) -> None:
    cfg = paper(pipeline, stage)
    assert cfg.engine.max_model_len - cfg.algo.sampling.max_new_tokens == 1024, "for a question"
    assert cfg.trainer.max_tokens >= cfg.engine.max_model_len
    assert cfg.longest_completion == 32_768 and cfg.algo.sampling.top_p == 1.0


@pytest.mark.parametrize(("pipeline", "stage"), [("r1_zero", "rl"), ("r1", "cold_start"), ("v3_post", "rl")])
def test_the_shape_comes_from_the_base(pipeline: str, stage: str) -> None:
    model = paper(pipeline, stage).model
    assert (model.kind, model.path, model.architecture) == ("deepseek", "/models/base", None)
    assert paper(pipeline, stage).trainer.dtype == paper(pipeline, stage).engine.dtype == "bf16"


@pytest.mark.parametrize("pipeline", ["r1", "v3_post"])
def test_an_answer_of_a_preference_fits_the_reward_model_with_its_question(pipeline: str) -> None:
    judged, learner = paper(pipeline, "preferences"), paper(pipeline, "reward_model")
    assert judged.sampling.max_new_tokens + 1024 <= learner.reward_model.max_length
