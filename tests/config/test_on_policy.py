"""On-policy distillation's settings by themselves, and what a run as a whole refuses, before any folder is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlkit.config import GrpoRun, OnPolicyDistillRun
from rlkit.config.compose import known_keys
from rlkit.config.placement import Demand, check_room, gpu_share
from rlkit.errors import UserError
from tests.config.variants import but, default


def run(changes: dict[str, Any]) -> OnPolicyDistillRun:
    return but(default("on_policy_distill"), changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_policy.samples": 0}, "on_policy.samples=0 must be at least 1"),
        ({"on_policy.prompts_per_step": 0}, "on_policy.prompts_per_step=0 must be at least 1"),
        ({"on_policy.steps": -1}, "on_policy.steps=-1 must be at least 0"),
        ({"on_policy.aggregate": "batch"}, "on_policy.aggregate='batch'"),
        ({"on_policy.sampling.temperature": 0.7},
         "on_policy.sampling.temperature=0.7: the teacher says log-probs at temperature 1"),
        ({"on_policy.sampling.top_p": 0.9}, "on_policy.sampling.top_p=0.9: .* set it to 1"),
        ({"on_policy.sampling.max_new_tokens": 192}, "on_policy.sampling.max_new_tokens=192 leaves no room"),
        ({"teacher.path": ""}, "teacher.path is empty, and a teacher is a trained model"),
        ({"engine.num_engines": 3}, "on_policy.prompts_per_step=32 cannot be dealt evenly to engine.num_engines=3"),
        ({"trainer.num_ranks": 3}, r"on_policy.prompts_per_step x on_policy.samples = 128 rollouts .*num_ranks=3"),
        ({"teacher.tensor_parallel": 0}, "the teacher, whose engine .*: engine.tensor_parallel=0 must be at least 1"),
        ({"engine.kind": "torch", "teacher.dtype": "bf16"}, "the teacher, .*: engine.dtype=bf16 needs engine=vllm"),
        ({"trainer.dtype": "fp8"}, "trainer.dtype=fp8 with recipe on_policy_distill: .* were not tried; set .*=bf16"),
        ({"teacher.dtype": "fp8"}, "teacher.dtype=fp8 with recipe on_policy_distill"),
        ({"cluster.kind": "local"}, "engine=vllm needs a process of its own"),
    ],
)  # fmt: skip
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(changes)


def test_the_teacher_is_a_process_more_and_counts_wherever_places_are_counted() -> None:
    demand = run({"teacher.tensor_parallel": 2, "trainer.num_ranks": 2}).demand
    assert demand == Demand(engines=1, workers=1, ranks=2, teacher=2) and demand.processes == 5
    assert str(demand) == "1 engine(s), a teacher of 2 workers and 2 trainer rank(s)"
    assert str(run({}).demand) == "1 engine(s), a teacher and 1 trainer rank(s)"
    with pytest.raises(UserError, match=r"teacher.tensor_parallel=2: .* cannot share; lower teacher.tensor_parallel"):
        gpu_share(4, demand, share=True)
    assert gpu_share(2, run({}).demand, share=True) == 1 / 2
    with pytest.raises(UserError, match="teacher 1 of 1 needs 2 CPUs on one machine, and the cluster has 1 CPUs"):
        check_room([{"CPU": 1.0}] * 5, demand, 0.0)
    with pytest.raises(UserError, match="trainer rank 2 of 2 needs 1 CPUs"):
        check_room([{"CPU": 4.0}], demand, 0.0)
    check_room([{"CPU": 2.0}, {"CPU": 3.0}], demand, 0.0)


def test_there_is_room_for_the_token_that_the_teachers_engine_adds() -> None:
    assert run({"on_policy.sampling.max_new_tokens": 100}).longest_completion == 101
    assert run({"evaluation.sampling.max_new_tokens": 120}).longest_completion == 120


def test_the_teachers_engine_is_the_students_with_its_own_values(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    changes = {"teacher.path": str(tmp_path), "engine.num_engines": 2, "engine.speculative_tokens": 1}
    cfg = run({**changes, "teacher.dtype": "bf16", "teacher.memory": 2.0, "engine.max_num_seqs": 7})
    teacher = cfg.teacher_run
    assert (teacher.model.kind, teacher.model.path, teacher.demand) == ("hf", str(tmp_path), cfg.demand)
    engine = teacher.engine
    assert (engine.dtype, engine.memory, engine.num_engines, engine.speculative_tokens) == ("bf16", 2.0, 1, 0)
    assert engine.max_num_seqs == 7 and teacher.output_dir != cfg.output_dir and teacher.engine_name == "teacher"
    with pytest.raises(UserError, match=r"give the folder of a checkpoint as teacher\.path"):
        _ = run({"teacher.path": "nowhere"}).teacher_run


def test_grpo_has_none_of_its_keys_and_it_keeps_no_reference() -> None:
    own = {key for key, _ in known_keys(OnPolicyDistillRun)} - {key for key, _ in known_keys(GrpoRun)}
    assert own and all(key.startswith(("on_policy.", "teacher.")) for key in own) and len(own) == 15
    assert not default("on_policy_distill").needs_reference


def test_what_it_amounts_to_is_said() -> None:
    rows = dict(run({"on_policy.samples": 2}).amounts(100, None))
    assert rows["on-policy distillation"] == "50 steps x 32 prompts x 2 rollouts = 64 a step"
    assert rows["tokens per step"].startswith("at most 4,096 sampled") and rows["teacher"] == "somewhere"
