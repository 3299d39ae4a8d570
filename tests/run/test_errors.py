"""Every mistake a user can make on the command line ends before Ray starts, in words that name key, value and fix."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from recipes import grpo, sft, sft_then_grpo
from rewards import RewardError
from rlkit.errors import UserError

LOCAL = ["cluster=local", "engine=torch", "trainer=torch", "data.train_size=50", "data.eval_size=20"]


def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path, *overrides: str, recipe=grpo) -> str:
    """What the recipe prints when it refuses; nothing may have been started or written."""
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as leaving:
        recipe.main([*LOCAL, f"output_dir={out}", *overrides])
    assert leaving.value.code == 2
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    assert not (out / "config.yaml").exists()
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algo.group_sise=8", ["algo.group_sise", "did you mean 'algo.group_size'"]),
        ("algo.loss.klcoef=0.1", ["algo.loss.klcoef", "did you mean 'algo.loss.kl_coef'"]),
        ("algo.lr=1e-5", ["algo.lr", "did you mean 'algo.schedule.lr'"]),
        ("trainer.learning_rate=1e-5", ["trainer.learning_rate", "did you mean 'algo.schedule.lr'"]),
        ("algo.beta=0.1", ["algo.beta", "did you mean 'algo.loss.kl_coef'"]),
        ("algo.num_generations=8", ["algo.num_generations", "did you mean 'algo.group_size'"]),
        ("algo.loss_settings={base: 0.1}", ["algo.loss_settings={'base': 0.1}", "algo.loss_fn, which is empty"]),
        ("model.path=Qwen/Qwen2.5-0.5B", ["Qwen/Qwen2.5-0.5B: no such folder", "model.path", "hf download"]),
        ("stepz=3", ["stepz", "not a key of recipe grpo", "--cfg job"]),
        ("+algo.speed=3", ["algo.speed", "not a key"]),
        ("algo.steps=abc", ["algo.steps='abc'", "wrong type", "integer"]),
        ("algo.steps=3.5", ["algo.steps=3.5", "integer"]),
        ("logging.tensorboard=perhaps", ["logging.tensorboard='perhaps'", "boolean"]),
        ("algo=[1,2]", ["algo"]),
        ("algo.schedule=3", ["algo.schedule", "group of keys"]),
        ("engine=vlm", ["engine=vlm", "torch, vllm", "did you mean 'vllm'"]),
        ("trainer.dtype=fp16", ["trainer.dtype='fp16'", "fp32 or bf16 or fp8 or fp8_weights"]),
        ("algo.scale=rank", ["algo.scale='rank'", "std or none"]),
        ("trainer.grad_clip=0", ["trainer.grad_clip=0", "above 0"]),
        ("trainer.max_skipped=-1", ["trainer.max_skipped=-1", "at least 0", "0 ends the run at the first"]),
        ("trainer.optimizer=sgd", ["trainer.optimizer='sgd'", "adamw or muon"]),
        ("trainer.dtype=bf16", ["trainer.dtype=bf16", "trainer=deepspeed"]),
        ("engine.dtype=bf16", ["engine.dtype=bf16", "engine=vllm"]),
        ("engine.memory=-1", ["engine.memory=-1", "above 0"]),
        ("algo.mtp_weight=-0.1", ["algo.mtp_weight=-0.1", "at least 0"]),
        ("engine.speculative_tokens=9", ["engine.speculative_tokens=9", "at most 8"]),
        ("engine.speculative_tokens=1", ["engine.speculative_tokens=1", "num_nextn_predict_layers=0", "set it to 0"]),
        ("model.architecture.num_nextn_predict_layers=-1", ["num_nextn_predict_layers=-1", "give 0 (none) or more"]),
        ("parity.tolerance=-1", ["parity.tolerance=-1", "above 0"]),
        ("reward.workers=0", ["reward.workers=0", "at least 1"]),
        ("reward.timeout=0", ["reward.timeout=0", "above 0"]),
        ("checkpoint.every=-1", ["checkpoint.every=-1", "at least 0"]),
        ("algo.schedule.lr=-1", ["algo.schedule.lr=-1", "above 0"]),
        ("algo.sampling.temperature=-1", ["algo.sampling.temperature=-1", "at least 0"]),
        ("trainer.bias_update_speed=-0.1", ["trainer.bias_update_speed=-0.1", "at least 0"]),
        ("trainer.balance_coef=-1", ["trainer.balance_coef=-1", "at least 0"]),
        ("trainer.zero_stage=0", ["trainer.zero_stage=0", "clips by the wrong norm", "use 1, 2 or 3"]),
        ("trainer.zero_stage=4", ["trainer.zero_stage=4", "there is no such stage", "use 1, 2 or 3"]),
        ("trainer.zero_stage=3", ["trainer.zero_stage=3 needs trainer=deepspeed; trainer=torch has 1"]),
        ("trainer.offload=optimizer", ["trainer.offload=optimizer needs trainer=deepspeed; trainer=torch has none"]),
        ("trainer.offload=disk", ["trainer.offload='disk'", "none or optimizer or all"]),
        ("trainer.expert_parallel=0", ["trainer.expert_parallel=0", "at least 1"]),
        ("trainer.expert_parallel=2", ["trainer.expert_parallel=2 does not divide trainer.num_ranks=1", "change one"]),
        ("trainer.recompute=maybe", ["trainer.recompute='maybe'", "boolean"]),
        ("algo.group_size=1", ["algo.group_size=1", "at least 2"]),
        ("algo.sampling.temperature=0", ["algo.sampling.temperature=0", "use 1.0"]),
        ("algo.sampling.top_p=0.9", ["algo.sampling.top_p=0.9", "use 1.0"]),
        ("engine=vllm", ["engine=vllm", "cluster=ray"]),
        ("engine.num_engines=2", ["engine.num_engines=2", "cluster=ray"]),
        ("resume=maybe", ["resume='maybe'", "auto or never"]),
        ("seed", ["'seed' is not an override", "key=value"]),
        ("algo.sampling.max_new_tokens=192", ["algo.sampling.max_new_tokens=192", "engine.max_model_len=192"]),
        ("engine.max_model_len=9999", ["engine.max_model_len=9999", "max_position_embeddings=4096"]),
        ("model.architecture.n_group=3", ["n_group=3", "n_routed_experts=8"]),
        ("+model.architecture.scoring_func=tanh", ["scoring_func='tanh'", "sigmoid, softmax"]),
        ("+model.architecture.scoring_func=softmax", ["norm_topk_prob=True", "set it to false"]),
        ("model.architecture.vocab_size=100", ["model.architecture.vocab_size=100", "too small"]),
    ],
)
def test_bad_keys_and_values(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, override: str, words: list[str]
) -> None:
    printed = refusal(capsys, tmp_path, override)
    for word in words:
        assert word in printed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.bias_update_speed=0.001", "first_k_dense_replace=4"], ["no layer with routed experts; set it to 0"]),
        (["trainer.balance_coef=1e-4", "first_k_dense_replace=4"], ["no layer with routed experts; set it to 0"]),
        (
            ["trainer.bias_update_speed=0.001", "scoring_func=softmax", "norm_topk_prob=false"],
            ["model.architecture has scoring_func=softmax, a router without a bias", "trainer.balance_coef above 0"],
        ),
    ],
)
def test_balancing_what_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    first, *shape = overrides
    printed = refusal(capsys, tmp_path, first, *(f"++model.architecture.{override}" for override in shape))
    for word in [first.split("=")[0] + "=", *words]:
        assert word in printed


def test_minibatches_that_do_not_divide_show_the_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = refusal(capsys, tmp_path, "algo.prompts_per_step=6", "algo.group_size=4", "algo.minibatches=5")
    assert "algo.minibatches=5 does not divide algo.prompts_per_step x algo.group_size = 6 x 4 = 24" in printed


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        (sft, ["sft.batch_size=5"], ["sft.batch_size=5", "trainer.num_ranks=2"]),
        (grpo, ["algo.prompts_per_step=1", "algo.group_size=3"], ["= 3 rollouts", "trainer.num_ranks=2"]),
        (sft_then_grpo, ["sft.batch_size=7"], ["sft.batch_size=7", "trainer.num_ranks=2"]),
    ],
)
def test_batches_that_cannot_be_dealt_to_ranks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe, overrides: list[str], words: list[str]
) -> None:
    ranks = ["cluster=ray", "trainer=deepspeed", "trainer.num_ranks=2"]
    printed = refusal(capsys, tmp_path, *ranks, *overrides, recipe=recipe)
    for word in words:
        assert word in printed


def test_prompts_that_cannot_be_dealt_to_engines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = refusal(capsys, tmp_path, "cluster=ray", "engine.num_engines=2", "algo.prompts_per_step=3")
    assert "algo.prompts_per_step=3 cannot be dealt evenly to engine.num_engines=2" in printed


def test_widths_that_vllm_cannot_run_on_a_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("the limit is that of vLLM's CPU build, and this machine has a GPU")
    printed = refusal(capsys, tmp_path, "cluster=ray", "engine=vllm", "model.architecture.moe_intermediate_size=48")
    assert "model.architecture.moe_intermediate_size=48" in printed and "multiple of 32" in printed


def test_missing_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = refusal(capsys, tmp_path, f"data={tmp_path}/nowhere.jsonl")
    assert "data.source" in printed and "nowhere.jsonl" in printed


def rows(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_missing_column_lists_those_there_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.jsonl", *({"problem": f"{i}+1", "answer": str(i + 1)} for i in range(80)))
    printed = refusal(capsys, tmp_path, f"data={file}")
    assert "data.prompt_column='question'" in printed
    assert "problem, answer" in printed


def test_empty_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("")
    printed = refusal(capsys, tmp_path, f"data={file}")
    assert "data.source" in printed and "rows.jsonl" in printed


def test_prompt_longer_than_the_context(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = [{"question": f"{i} " + "x" * 500, "answer": "1"} for i in range(80)]
    file = rows(tmp_path / "rows.jsonl", *records)
    printed = refusal(capsys, tmp_path, f"data={file}", "model.architecture.vocab_size=265")
    assert "the prompt of row" in printed and "engine.max_model_len" in printed


def test_model_path_that_is_no_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = refusal(capsys, tmp_path, f"model.path={tmp_path}/nothing")
    assert "nothing" in printed
    (tmp_path / "empty").mkdir()
    printed = refusal(capsys, tmp_path, f"model.path={tmp_path}/empty")
    assert "config.json" in printed


def test_drafts_that_vllm_cannot_share_out_over_two_modules(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = ["model.architecture.num_nextn_predict_layers=2", "engine.speculative_tokens=3"]
    printed = refusal(capsys, tmp_path, "cluster=ray", "engine=vllm", *overrides)
    assert "engine.speculative_tokens=3: vLLM takes at most num_nextn_predict_layers=2 or a multiple" in printed


LORA = "trainer.lora={rank: 2, alpha: 4, targets: all-linear}"
V2 = ["model.architecture.scoring_func=softmax", "model.architecture.norm_topk_prob=false"]
MTP = "model.architecture.num_nextn_predict_layers=1"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            [LORA, "trainer.bias_update_speed=0.001"],
            "trainer.bias_update_speed=0.001 moves what an adapter cannot hold",
        ),
        ([LORA, MTP, "algo.mtp_weight=0.3"], "algo.mtp_weight=0.3 trains MTP modules, which trainer.lora leaves"),
        (
            [*V2, MTP, "engine.speculative_tokens=1", "cluster=ray", "engine=vllm"],
            "engine.speculative_tokens=1: vLLM has no MTP for DeepSeek-V2",
        ),
        (["model=hf", "model.path=x", "model.architecture.hidden_size=64"], "model=hf takes the model's sizes from"),
    ],
)
def test_parts_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: str
) -> None:
    assert words in refusal(capsys, tmp_path, "data.train_size=50", "data.eval_size=20", *overrides)


@pytest.mark.slow
def test_a_tied_model_of_ours_starts_another_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its file holds the head for vLLM, which `model.path` took for a tensor that nobody knows."""
    tied = ["model.architecture.tie_word_embeddings=true", "evaluation.sampling.max_new_tokens=2"]
    sft.main([*LOCAL, f"output_dir={tmp_path}/sft", "sft.steps=0", *tied])
    grpo.main([*LOCAL, f"model.path={tmp_path}/sft/model", "dry_run=true"])
    assert "the model and the reward are in order" in capsys.readouterr().out


def test_a_checkpoint_with_a_tensor_missing_or_cut_short(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nor is it another shape than its own."""
    sft.main([*LOCAL, f"output_dir={tmp_path}/sft", "sft.steps=0", "evaluation.sampling.max_new_tokens=2"])
    given = f"model.path={tmp_path}/sft/model"
    printed = refusal(capsys, tmp_path, given, "model.architecture.hidden_size=256")
    assert "model.architecture.hidden_size=256, but the checkpoint" in printed and "has 128" in printed
    grpo.main([*LOCAL, given, "model.architecture.hidden_size=128", "dry_run=true"])
    capsys.readouterr()
    file = tmp_path / "sft" / "model" / "model.safetensors"
    tensors, whole = load_file(file), file.read_bytes()
    capsys.readouterr()
    lost = "model.layers.1.mlp.experts.2.up_proj.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    assert f"{lost}: missing" in refusal(capsys, tmp_path, f"model.path={file.parent}")
    file.write_bytes(whole[:-100])
    assert "cut short" in refusal(capsys, tmp_path, f"model.path={file.parent}")


def test_tasks_can_be_replaced_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for override, shown in (
        ("data.tasks={gcd: {}, chain_sum: {min_terms: 3}}", {"gcd": {}, "chain_sum": {"min_terms": 3}}),
        ("data.tasks={gcd: {max_numbers: 3}}", {"gcd": {"max_numbers": 3}}),
    ):
        grpo.main([override, "--cfg", "job"])
        printed = capsys.readouterr().out.split("\nparameters")[0]
        assert yaml.safe_load(printed)["data"]["tasks"] == shown


def test_resume_from_something_that_is_no_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = tmp_path / "run" / "checkpoints" / "grpo-000004"
    broken.mkdir(parents=True)
    printed = refusal(capsys, tmp_path)
    assert "grpo-000004 is not a checkpoint" in printed and "remove that folder" in printed


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("nmber", ["'nmber'", "number"]),
        ("nowhere.py:f", ["nowhere.py"]),
        ("math:sqroot", ["sqroot"]),
        ("json:dumps", ["completion"]),
    ],
)
def test_rewards_that_do_not_load(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, reward: str, words: list[str]
) -> None:
    printed = refusal(capsys, tmp_path, f"reward={reward}")
    for word in words:
        assert word in printed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward=code"], ["none of 70 rows has tests", "question"]),
        (
            ["reward=composite", "reward.kwargs.by=task", "reward.kwargs.rewards={gcd: number}"],
            ["task='chain_sum'", "there are rewards for gcd"],
        ),
        (["reward=composite", "reward.kwargs.rewards=[number, PLUGIN:f]"], ["needs city", "prompt '"]),
        (["reward=math", "reward.kwargs.timeout=30"], ["reward.timeout=20", "the 30 seconds that reward 'math'"]),
        (["reward=code", "reward.timeout=10"], ["reward.timeout=10", "the 10 seconds", "reward.kwargs"]),
    ],
)
def test_rewards_that_cannot_judge_these_rows_or_not_in_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    """All of these came up only when a rollout was judged, or as rollouts that time and again had no verdict."""
    plugin = tmp_path / "mine.py"
    plugin.write_text("def f(completion: str, city: str) -> float:\n    return 0.0\n")
    given = [override.replace("PLUGIN", str(plugin)) for override in overrides]
    printed = refusal(capsys, tmp_path, "data.train_size=50", "data.eval_size=20", *given)
    for word in words:
        assert word in printed


def test_a_folder_with_another_run_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = [*LOCAL, f"output_dir={out}", "algo.steps=0", "sft.steps=0", "evaluation.sampling.max_new_tokens=2"]
    sft_then_grpo.main(common)
    capsys.readouterr()
    for override, words in (
        ("seed=1", ["seed", "was 0, now 1", "another output_dir"]),
        ("resume=never", ["already holds a run", "resume=auto"]),
    ):
        with pytest.raises(SystemExit) as leaving:
            sft_then_grpo.main([*common, override])
        assert leaving.value.code == 2
        printed = capsys.readouterr().err
        for word in words:
            assert word in printed


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["dry_run=true"]])
def test_looking_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: list[str]) -> None:
    out = tmp_path / "run"
    grpo.main(["data.train_size=50", "data.eval_size=20", f"output_dir={out}", *flag])
    printed = capsys.readouterr().out
    for words in ("group_size: 8", "parameters", "32 groups x 8 rollouts = 256", "tokens per step", "memory"):
        assert words in printed
    assert not out.exists()
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_kwargs_of_a_reward_reach_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("def f(completion: str, bonus: float = 0.0) -> float:\n    return bonus\n")
    argv = ["data.train_size=50", "data.eval_size=20", f"reward={plugin}:f", "--cfg", "job"]
    grpo.main([*argv, "reward.kwargs.bonus=0.5"])
    assert "bonus: 0.5" in capsys.readouterr().out
    assert "takes no setting 'bonsu'" in refusal(capsys, tmp_path, f"reward={plugin}:f", "reward.kwargs.bonsu=1")


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyError("a bug"), AssertionError("a bug")])
@pytest.mark.parametrize("place", ["rlkit.run.plan.prepare", "rlkit.config.stages.AlgoConfig.__post_init__"])
def test_a_bug_keeps_its_traceback(bug: Exception, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(_: object) -> None:
        raise bug

    monkeypatch.setattr(place, planted)
    with pytest.raises(type(bug), match="a bug") as raised:
        grpo.main([*LOCAL, f"output_dir={tmp_path}/run"])
    assert raised.value is bug and raised.traceback[-1].name == "planted"


@pytest.mark.parametrize("mistake", [UserError("key=value: mend it"), RewardError("key=value: mend it")])
def test_what_the_user_can_mend_is_one_line(
    mistake: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planted(_: object) -> None:
        raise mistake

    monkeypatch.setattr("rlkit.run.plan.prepare", planted)
    assert refusal(capsys, tmp_path) == "error: key=value: mend it\n"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.instruction=\udcff", r"data.instruction='\udcff' is no text in UTF-8"),
        (r'algo.loss_fn="a\0b.py:f"', "holds a zero byte"),
        (r'reward.fn="a\0b.py:f"', "holds a zero byte"),
        (r'data.source="a\0b.jsonl"', "holds a zero byte"),
    ],
)
def test_texts_that_a_library_would_stumble_over(
    override: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(capsys, tmp_path, override)
