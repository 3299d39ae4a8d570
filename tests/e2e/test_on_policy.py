"""On-policy distillation as a user starts it: a kill, other layouts, a dense student under a teacher with experts."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from recipes import on_policy_distill, sft
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config, to_yaml
from tests.e2e.runs import LOCAL, TINY, final_weights, finish_here, killed_by
from tests.e2e.test_kill import KILLING_REWARD, processes_of, steps

SHARED = [word for word in TINY if not word.startswith(("algo.", "sft.", "model."))]
SHORT = ["on_policy.sampling.max_new_tokens=16", "on_policy.prompts_per_step=4", "on_policy.samples=4"]
SHORT += ["evaluation.sampling.max_new_tokens=16", "data.eval_size=4", "checkpoint.every=1", "on_policy.steps=3"]
FAST = ["on_policy.schedule={lr: 5e-3, warmup_steps: 0, kind: constant, final_ratio: 1.0}"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with experts that has learned a little, and a student with its tokenizer that has learned less."""
    folder = tmp_path_factory.mktemp("distill")
    base = [word for word in TINY if not word.startswith("algo.")]
    sft.main([*base, *LOCAL, "sft.steps=60", "sft.schedule.lr=5e-3", f"output_dir={folder}/teacher"])
    tokenizer = f"model.tokenizer={folder}/teacher/model"
    sft.main([*base, *LOCAL, "sft.steps=5", "seed=1", tokenizer, f"output_dir={folder}/student"])
    (folder / "plugin.py").write_text(KILLING_REWARD)
    return folder


def words(folder: Path, name: str, *more: str, student: str = "student") -> list[str]:
    given = [f"model.path={folder}/{student}/model", f"teacher.path={folder}/teacher/model"]
    return [*SHARED, *SHORT, *given, *more, f"output_dir={folder}/{name}"]


def same_bits(one: Path, other: Path) -> None:
    expected, found = final_weights(one), final_weights(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert steps(one) == steps(other)


def test_killed_and_resumed_equals_uninterrupted(folder: Path) -> None:
    """A call of the reward is a group, of 4 before the first step and 4 in each: call 14 is inside step 3."""
    own = [*LOCAL, f"reward={folder}/plugin.py:deadly", "reward.workers=1", "evaluation.every=2"]
    finish_here("on_policy_distill", *words(folder, "whole", *own))
    killed = words(folder, "killed", *own)
    dies = {"DIE_AT_CALL": "18", "RLKIT_TEST_RUN": str(folder)}
    assert killed_by("on_policy_distill", *killed, env=dies) == -signal.SIGKILL
    assert not (folder / "killed" / "model").exists() and not processes_of(f"RLKIT_TEST_RUN={folder}")
    assert "resuming after on_policy step 2" in finish_here("on_policy_distill", *killed)
    same_bits(folder / "whole", folder / "killed")
    recorded = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["name"] for line in recorded if line["stage"] == "eval"] == [
        "before distillation", "on policy step 2", "after distillation",
    ]  # fmt: skip
    # Another teacher in the same place is another run.
    file = folder / "teacher" / "model" / "config.json"
    whole = file.read_text()
    file.write_text(whole.replace("{", '{"note": 1,', 1))
    printed = finish_here("on_policy_distill", *killed, code=2)
    file.write_text(whole)
    assert "the file that teacher.path names is not the one of its first start" in printed


def test_a_student_comes_closer_in_this_process(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_policy_distill.main(words(folder, "closer", *LOCAL, *FAST, "on_policy.steps=40", "checkpoint.every=0"))
    printed = capsys.readouterr().out
    assert "rev. KL" in printed and "held-out accuracy after distillation" in printed
    measured = [step["reverse_kl"] for step in map(dict, steps(folder / "closer")) if step["stage"] == "on_policy"]
    assert len(measured) == 40 and sum(measured[-3:]) < 0.6 * sum(measured[:3])
    assert "student against teacher" in (folder / "closer" / "report.html").read_text()


def test_an_adapter_is_trained_and_merged(folder: Path) -> None:
    own = ["on_policy.steps=2", "trainer.lora={rank: 4, alpha: 8}", "checkpoint.every=0"]
    on_policy_distill.main(words(folder, "adapter", *LOCAL, *FAST, *own))
    before, after = final_weights(folder / "student"), final_weights(folder / "adapter")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("experts" in name or "norm" in name for name in moved)
    assert (folder / "adapter" / "model" / "adapter").is_dir()


def test_experts_on_two_ranks_learn_as_one_rank_does_and_go_on_with_the_same_bits(folder: Path) -> None:
    short = ["on_policy.steps=2", "trainer.bias_update_speed=0.001"]
    on_policy_distill.main(words(folder, "here", *LOCAL, *short))
    ranks = ["engine=torch", "engine.num_engines=2", "trainer.num_ranks=2", "trainer.expert_parallel=2"]
    there = words(folder, "there", *short, *ranks)
    printed = finish_here("on_policy_distill", *there)
    assert "starting 2 engine(s), a teacher and 2 trainer rank(s) on Ray" in printed
    expected, found = final_weights(folder / "here"), final_weights(folder / "there")
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm() / tensor.norm().clamp(min=1e-6)) <= 1e-3, name
    first = [dict(steps(folder / name)[1]) for name in ("here", "there")]
    assert first[1]["reverse_kl"] == pytest.approx(first[0]["reverse_kl"], abs=1e-4)
    assert first[1]["length"] == first[0]["length"], "the same rollouts"

    shutil.copytree(folder / "there", folder / "half")
    shutil.rmtree(folder / "half" / "checkpoints" / "on_policy-000002")
    shutil.rmtree(folder / "half" / "model")
    half = words(folder, "half", *short, *ranks)
    assert "resuming after on_policy step 1" in finish_here("on_policy_distill", *half)
    same_bits(folder / "there", folder / "half")


def test_a_dense_student_under_a_teacher_with_experts_on_vllm_and_deepspeed(folder: Path) -> None:
    tokenizer = f"model.tokenizer={folder}/teacher/model"
    base = [word for word in TINY if not word.startswith(("algo.", "model."))]
    sft.main([*base, *LOCAL, "model=dense_tiny", "sft.steps=2", tokenizer, f"output_dir={folder}/dense"])
    own = ["on_policy.steps=1", "trainer.num_ranks=2", "trainer.zero_stage=3"]
    printed = finish_here("on_policy_distill", *words(folder, "vllm", *own, student="dense"))
    assert "starting 1 engine(s), a teacher and 2 trainer rank(s) on Ray" in printed
    [_, step, _] = map(dict, steps(folder / "vllm"))
    assert step["reverse_kl"] > 0 and step["logprob_gap"] < 1e-3 and step["parity"] < 1e-4
    assert not any("experts" in name for name in final_weights(folder / "vllm"))


def test_a_grpo_run_has_none_of_its_keys() -> None:
    shown = to_yaml(load_config("grpo", GrpoRun, []))
    assert "on_policy" not in shown and "teacher:" not in shown
