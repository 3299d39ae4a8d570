"""The comparison with TRL is fair and adds up; the comparison itself is not run here."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rewards
from benchmarks import grpo_vs_trl, job, timing
from benchmarks.spread import spread
from benchmarks.timing import Step
from rlkit.config import GrpoRun
from rlkit.config.compose import ConfigError, load_config
from rlkit.model import DeepseekV3
from rlkit.run.prepare import Task, prepare
from rlkit.types import Prompt

JOB = job.Job(new_tokens=64)
STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "job"
    job.write_inputs(JOB, path)
    return path


@pytest.fixture(scope="module")
def rlkit_cfg(folder: Path) -> GrpoRun:
    return load_config("grpo", GrpoRun, job.rlkit_overrides(JOB, folder, STEPS))


@pytest.fixture(scope="module")
def task(rlkit_cfg: GrpoRun) -> Task:
    return prepare(rlkit_cfg)


def described(prompts: tuple[Prompt, ...], folder: Path) -> dict:
    """The TRL side's job, as the file that carries it says."""
    return json.loads(json.dumps(job.trl_job(JOB, folder, STEPS, [prompt.text for prompt in prompts])))


def step(seconds: float, *, tokens: int = JOB.tokens, grad_norm: float = 1.0, foreign: float = 0.0) -> Step:
    phases = {"sample": seconds / 2, "train": seconds / 4}
    return Step(seconds=seconds, phases=phases, tokens=tokens, grad_norm=grad_norm, foreign=foreign)


# --- both sides do the same ---


def test_the_sides_get_the_same_sizes_and_constants(rlkit_cfg: GrpoRun, task: Task, folder: Path) -> None:
    theirs = described(task.prompts, folder)
    arguments, algo = theirs["arguments"], rlkit_cfg.algo
    rollouts = algo.prompts_per_step * algo.group_size
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == rollouts == 64
    assert arguments["num_generations"] == algo.group_size
    assert arguments["max_completion_length"] == algo.sampling.max_new_tokens == 64
    assert JOB.tokens == rollouts * algo.sampling.max_new_tokens
    assert (arguments["temperature"], arguments["top_p"]) == (algo.sampling.temperature, algo.sampling.top_p)
    assert arguments["beta"] == algo.loss.kl_coef > 0
    assert (arguments["learning_rate"], arguments["lr_scheduler_type"]) == (algo.schedule.lr, algo.schedule.kind)
    assert arguments["adam_beta2"] == rlkit_cfg.trainer.beta2
    assert arguments["max_grad_norm"] == rlkit_cfg.trainer.grad_clip
    assert arguments["weight_decay"] == rlkit_cfg.trainer.weight_decay
    assert algo.minibatches == 1 and algo.aggregate == "token" and algo.scale == "std"
    assert theirs["model"] == rlkit_cfg.model.path
    assert theirs["threads"] == os.cpu_count()


def test_rlkit_runs_what_it_ships(rlkit_cfg: GrpoRun) -> None:
    assert (rlkit_cfg.cluster.kind, rlkit_cfg.engine.kind, rlkit_cfg.trainer.kind) == ("ray", "vllm", "deepspeed")
    assert rlkit_cfg.engine.dtype == rlkit_cfg.trainer.dtype == "fp32"
    shipped = load_config("grpo", GrpoRun)
    assert rlkit_cfg.parity == shipped.parity and rlkit_cfg.trainer.max_tokens == shipped.trainer.max_tokens
    # Neither stage has more threads than TRL, which has every core of two.
    assert rlkit_cfg.engine.num_engines * rlkit_cfg.engine.threads == 2
    assert rlkit_cfg.trainer.num_ranks * rlkit_cfg.trainer.threads == 2
    assert rlkit_cfg.checkpoint.every == 0 and rlkit_cfg.algo.steps > STEPS  # no checkpoint within the timed steps


def test_settings_of_the_command_line_win(folder: Path) -> None:
    cfg = load_config("grpo", GrpoRun, job.rlkit_overrides(JOB, folder, STEPS, ["engine.threads=1"]))
    assert cfg.engine.threads == 1
    with pytest.raises(ConfigError, match=r"engine\.thread"):
        load_config("grpo", GrpoRun, job.rlkit_overrides(JOB, folder, STEPS, ["engine.thread=1"]))


def test_the_sides_see_the_same_prompts(task: Task, folder: Path) -> None:
    theirs = described(task.prompts, folder)
    ids = AutoTokenizer.from_pretrained(theirs["model"])(theirs["prompts"])["input_ids"]
    assert [tuple(row) for row in ids] == [prompt.tokens for prompt in task.prompts]
    assert len(set(theirs["prompts"])) == JOB.num_prompts
    assert all(12 <= len(row) <= 20 for row in ids)


def test_prompts_fit_with_their_completions(rlkit_cfg: GrpoRun, task: Task) -> None:
    longest = max(len(prompt.tokens) for prompt in task.prompts)
    assert longest + JOB.new_tokens <= rlkit_cfg.engine.max_model_len


def test_both_sides_get_the_same_reward() -> None:
    completions = ["a", "b", "ab", "", "\u00e9"]
    loaded = rewards.load(f"{Path(job.__file__).with_name('spread.py')}:spread")
    ours = [verdict.value for verdict in loaded([rewards.Sample("1 + 2", completion) for completion in completions])]
    assert ours == spread(prompts=["1 + 2"] * 5, completions=completions, completion_ids=[])
    assert ours == [0.0, 1 / 97, (97 + 98) % 97 / 97, 0.0, (0xC3 + 0xA9) % 97 / 97]


# --- the model ---


def test_the_model_is_the_one_of_the_table(folder: Path) -> None:
    model = DeepseekV3.from_checkpoint(folder / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_268_416
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_no_side_can_sample_the_end_token_and_every_other_is_likely(folder: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    ours = DeepseekV3.from_checkpoint(folder / "model")
    tokens = torch.randint(job.ARCHITECTURE.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for logits in (theirs(tokens).logits, ours(tokens)):
            logprobs = logits.log_softmax(-1)
            assert logprobs[..., job.END].max() < -100
            entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
            assert entropy > 0.9 * math.log(job.ARCHITECTURE.vocab_size)


def test_forbidding_a_token_leaves_the_others_to_the_blocks() -> None:
    config = replace(job.ARCHITECTURE, hidden_size=64, num_hidden_layers=2, kv_lora_rank=32)
    torch.manual_seed(0)
    model = DeepseekV3(config)
    job.forbid(model, 7)
    tokens = torch.arange(40)
    with torch.no_grad():
        logits = model(tokens)
        model.lm_head.weight[7, 0] = 0
        free = model(tokens)
    assert logits[:, 7].max() < -100 < free[:, 7].min()
    others = torch.arange(config.vocab_size) != 7
    torch.testing.assert_close(logits[:, others], free[:, others], rtol=0, atol=0)


@pytest.mark.slow
def test_trl_takes_the_arguments(task: Task, folder: Path) -> None:
    python = grpo_vs_trl.TRL_VENV / "bin" / "python"
    if not python.exists():
        pytest.skip("no .trl-venv: the benchmark makes it on its first run")
    script = (
        "import json, sys; from trl import GRPOConfig; c = GRPOConfig(**json.loads(sys.stdin.read()))\n"
        "print(json.dumps([c.generation_batch_size, c.steps_per_generation, c.num_iterations, c.bf16, c.use_vllm]))"
    )
    arguments = json.dumps(described(task.prompts, folder)["arguments"])
    done = subprocess.run([str(python), "-c", script], input=arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # One optimiser step on all rollouts of one generation, which is used once; fp32; transformers' generate.
    assert json.loads(done.stdout.splitlines()[-1]) == [64, 1, 1, False, False]


# --- the numbers ---


def test_summary_of_known_steps() -> None:
    summary = timing.summarise([step(4.0, foreign=0.1), step(1.0), step(2.0, foreign=0.3)])
    assert (summary.low, summary.median, summary.high) == (1.0, 2.0, 4.0)
    assert summary.tokens_per_second == JOB.tokens / 2.0
    assert summary.phases == {"sample": 1.0, "train": 0.5}
    assert summary.foreign == 0.3


def test_report_gives_the_ratio_of_medians_and_whole_rows() -> None:
    sides = {
        "rlkit": timing.summarise([step(1.0), step(2.0), step(9.0)]),
        "trl": timing.summarise([step(3.0), step(5.0), step(100.0)]),
    }
    lines = timing.report({64: sides, 256: {**sides, "trl": sides["rlkit"]}}).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4
    assert {line.count("|") for line in table} == {13}
    assert table[2].startswith("| 64 | rlkit | 1.00 | **2.00** | 9.00 | 2,048 | 1.00 | - | 0.50 | - | - | 0% |")
    assert lines[-2].startswith("64 new tokens: 2.50x")
    assert lines[-1].startswith("256 new tokens: 1.00x")


@pytest.mark.parametrize(
    "wrong", [step(1.0, tokens=JOB.tokens - 1), step(1.0, grad_norm=0.0), step(1.0, grad_norm=math.nan)]
)
def test_unequal_work_is_refused(wrong: Step) -> None:
    timing.check_steps(JOB, {"rlkit": [step(1.0)], "trl": [step(2.0)]})
    with pytest.raises(RuntimeError, match="trl sampled"):
        timing.check_steps(JOB, {"rlkit": [step(1.0)], "trl": [step(2.0), wrong]})


def test_the_sides_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], Step]:
        def take() -> Step:
            order.append(name)
            return step(float(len(order)))

        return take

    sides = {name: side(name) for name in ("rlkit", "trl")}
    taken = grpo_vs_trl.alternate(sides, dict.fromkeys(sides, timing.busy_seconds), 3)
    assert order == ["rlkit", "trl"] * 3
    assert [s.seconds for s in taken["rlkit"]] == [1.0, 3.0, 5.0]
    assert [s.seconds for s in taken["trl"]] == [2.0, 4.0, 6.0]
    assert capsys.readouterr().out.count("others used") == 6


def test_foreign_share_is_what_others_used_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = iter([10.0, 13.0]), iter([5.0, 7.5])
    monkeypatch.setattr(grpo_vs_trl, "busy_seconds", lambda: next(busy))
    taken = grpo_vs_trl.alternate({"rlkit": lambda: step(2.0)}, {"rlkit": lambda: next(own)}, 1)
    assert taken["rlkit"][0].foreign == pytest.approx((3.0 - 2.5) / (2.0 * (os.cpu_count() or 1)))


def test_cpu_seconds_of_a_process_are_those_it_used() -> None:
    me = psutil.Process()
    before, start = timing.used_by(me), os.times()
    torch.randn(1500, 1500).matmul(torch.randn(1500, 1500))
    end = os.times()
    used = end.user + end.system - start.user - start.system
    assert timing.used_by(me) - before == pytest.approx(used, abs=0.1)


def test_the_machine_is_named() -> None:
    assert f"{os.cpu_count()} cores, load average" in timing.machine()


# --- the command line ---


@pytest.mark.parametrize("words", [["--new-tokens", "many"], ["--sides", "trl"], ["--steps", "1.5"]])
def test_wrong_arguments_start_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        grpo_vs_trl.main(words)
    assert left.value.code == 2
    assert "usage" in capsys.readouterr().err
