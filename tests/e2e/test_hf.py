"""Models of transformers through SFT, GRPO, export and reload, with all weights and with adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from recipes import grpo, sft_then_grpo
from rlkit.build import build_trainer
from rlkit.config import SftThenGrpoRun
from rlkit.config.compose import load_config
from rlkit.run.folder import newest_checkpoint
from rlkit.watch import read_metrics
from tests.e2e.runs import LOCAL, SPREAD_REWARD, TINY, finish_here
from tests.hf_folders import make, save

pytestmark = pytest.mark.slow
SMALL = [
    *(word for word in TINY if not word.startswith("model.")),
    *("data.train_size=40", "data.eval_size=4", "engine.max_model_len=48", "reward.workers=1"),
    *("sft.steps=2", "sft.batch_size=8", "algo.steps=2", "algo.prompts_per_step=2"),
    *("algo.sampling.max_new_tokens=8", "evaluation.sampling.max_new_tokens=4", "sft.schedule.lr=0.02"),
]
LORA = "trainer.lora={rank: 4, alpha: 8}"
SEQUENCES = [[5, 60, 7, 80, 9, 10, 11, 3], [200, 4, 150, 6]]


@torch.no_grad()
def logprobs(model: PreTrainedModel | PeftModel) -> list[list[float]]:
    """By transformers alone, one sequence at a time."""
    found = []
    for sequence in SEQUENCES:
        ids_T = torch.tensor(sequence)
        logprobs_TV = model(ids_T.unsqueeze(0)).logits[0].log_softmax(-1)
        found.append(logprobs_TV[:-1].gather(1, ids_T[1:, None])[:, 0].tolist())
    return found


def overrides(folder: Path, *more: str) -> list[str]:
    reward = folder / "spread.py"
    reward.write_text(SPREAD_REWARD)
    places = [f"model.path={folder / 'base'}", f"output_dir={folder / 'run'}", f"reward={reward}:spread"]
    return ["model=hf", *SMALL, *places, *more]


def close(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """The largest difference, in nats."""
    return max(abs(a - b) for one, two in zip(ours, theirs, strict=True) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "deepseek"])
def test_sft_grpo_export_reload(kind: str, lora: bool, tmp_path: Path) -> None:
    base = save(make(kind), tmp_path / "base")
    given = overrides(tmp_path, *LOCAL, *([LORA] if lora else []))
    sft_then_grpo.main(given)
    run, model = tmp_path / "run", tmp_path / "run" / "model"
    steps = [line for line in read_metrics(run) if line["stage"] == "grpo"]
    assert len(steps) == 2 and all(line["parity"] <= 1e-4 and line["flat_groups"] < 2 for line in steps)

    cfg = load_config("sft_then_grpo", SftThenGrpoRun, given)
    store = distributed.HashStore()
    trainer = build_trainer(cfg.trainer, base, "hf", keep_reference=True, seed=cfg.seed, store=store, rank=0)
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None and newest[1].stage == "grpo"
    untrained = trainer.logprobs(SEQUENCES)
    trainer.load(newest[0])
    trained = trainer.logprobs(SEQUENCES)
    reloaded = logprobs(AutoModelForCausalLM.from_pretrained(model))
    moved, gap = close(trained, untrained), close(trained, reloaded)
    print(f"{kind}: training moved log-probs by {moved:.1e} nats; trainer and reloaded export differ by {gap:.1e}")
    assert gap <= 1e-5 < 1e-2 < moved
    assert load_file(model / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    assert AutoTokenizer.from_pretrained(model).chat_template
    assert (model / "adapter").exists() == lora
    if lora:
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), model / "adapter")
        assert close(logprobs(adapted.eval()), trained) <= 1e-5


def test_an_export_is_the_start_of_another_run(tmp_path: Path) -> None:
    save(make("llama"), tmp_path / "base")
    grpo_only = [word for word in overrides(tmp_path, *LOCAL) if not word.startswith("sft.")]
    grpo.main([*grpo_only, "algo.steps=1"])
    grpo.main([*grpo_only, "algo.steps=1", LORA, f"model.path={tmp_path}/run/model", f"output_dir={tmp_path}/next"])
    assert (tmp_path / "next" / "model" / "adapter" / "adapter_config.json").exists()


def test_adapters_on_our_own_model(tmp_path: Path) -> None:
    """The export is loaded by transformers' class, and so is the adapter onto the model that the run started from."""
    reward = tmp_path / "spread.py"
    reward.write_text(SPREAD_REWARD)
    shape = [word for word in TINY if word.startswith("model.")]
    run = tmp_path / "run"
    sft_then_grpo.main([*SMALL, *shape, *LOCAL, LORA, f"output_dir={run}", f"reward={reward}:spread"])
    merged = logprobs(AutoModelForCausalLM.from_pretrained(run / "model"))
    base = AutoModelForCausalLM.from_pretrained(run / "initial")
    before = logprobs(base)
    adapted = PeftModel.from_pretrained(base, run / "model" / "adapter").eval()
    assert close(logprobs(adapted), merged) <= 1e-5 < 1e-3 < close(before, merged)


def test_qwen2_with_adapters_on_ray_vllm_and_deepspeed(tmp_path: Path, ray: None) -> None:
    """Served as an adapter by the engine, which gets it again when the run is opened once more."""
    save(make("qwen2"), tmp_path / "base")
    lora = "trainer.lora={rank: 4, alpha: 8, served: adapter}"
    given = overrides(tmp_path, lora, "cluster=ray", "engine=vllm", "trainer=deepspeed")
    printed = finish_here("sft_then_grpo", *given)
    assert printed.count("parity: engine and trainer agree within") == 2
    steps = [line for line in read_metrics(tmp_path / "run") if line["stage"] == "grpo"]
    assert len(steps) == 2 and all(0 < line["parity"] <= 1e-4 for line in steps)
    assert "LoRA" not in printed and (tmp_path / "run" / "model" / "adapter").is_dir()
    again = finish_here("sft_then_grpo", *given)
    assert "this run is complete" in again and "parity: engine and trainer agree within" in again
