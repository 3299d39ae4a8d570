"""Mistakes with models of transformers and with adapters: each ends before anything starts, with key, value and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from recipes import grpo, sft
from tests.hf_folders import make, save
from tests.run.test_errors import refusal

HF = ["model=hf", "engine.max_model_len=96"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make("qwen2"), tmp_path / "base")


def edit(file: Path, **keys: object) -> None:
    content = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_no_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = refusal(capsys, tmp_path, "model=hf")
    assert "model.path=''" in printed and "set model.path=FOLDER" in printed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.kind=gpt"], "model.kind='gpt' is unknown; use deepseek or hf"),
        (["model.kind=deepseekk"], "did you mean 'deepseek'"),
        (["model.kind=hf"], "model.path='' but model=hf starts from a checkpoint"),
        (["model.kind=hf", "model.path=x"], "model.architecture: model=hf takes the model's sizes from its folder"),
        (["model=hf", "model.kind=deepseek"], "model.architecture=null, but with model.path='' the model is new"),
    ],
)
def test_kinds_of_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: str) -> None:
    assert words in refusal(capsys, tmp_path, *overrides)


def test_what_balancing_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    printed = refusal(capsys, tmp_path, *HF, f"model.path={folder}", "trainer.balance_coef=0.1")
    assert (
        "trainer.balance_coef=0.1: model.path=" in printed and "whose routers stay as they are; set it to 0" in printed
    )


def test_fp8_needs_our_own_class(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    printed = refusal(capsys, tmp_path, *HF, f"model.path={folder}", "trainer=deepspeed", "trainer.dtype=fp8")
    assert "trainer.dtype=fp8: model=hf has no table of the matrices that FP8 is for; use trainer.dtype=bf16" in printed


def test_no_such_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such folder" in refusal(capsys, tmp_path, *HF, f"model.path={tmp_path}/nowhere")


def test_another_model_for_our_class(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    printed = refusal(capsys, tmp_path, f"model.path={folder}")
    assert "model_type='qwen2'" in printed and "model=hf" in printed


def test_a_weight_that_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.q_proj.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert "model.layers.1.self_attn.q_proj.bias: missing" in refusal(capsys, tmp_path, *HF, f"model.path={folder}")


def test_a_context_longer_than_the_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    printed = refusal(capsys, tmp_path, "model=hf", f"model.path={folder}", "engine.max_model_len=192")
    assert "engine.max_model_len=192 is more than the model's max_position_embeddings=128" in printed


def test_tokenizers_that_will_not_do(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    here = [*HF, f"model.path={folder}"]
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=9)
    assert "its tokenizer ends texts with '<eos>' (id 1), but its config.json says eos_token_id [9]" in refusal(
        capsys, tmp_path, *here
    )
    edit(folder / "config.json", eos_token_id=[9, 1])
    edit(folder / "tokenizer.json", added_tokens=[
        token | ({"special": True} if token["content"] == "</answer>" else {})
        for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    ])  # fmt: skip
    assert "its tokenizer drops </answer> when it decodes" in refusal(capsys, tmp_path, *here)
    (folder / "chat_template.jinja").unlink()
    assert "its tokenizer has no chat template" in refusal(capsys, tmp_path, *here)
    (folder / "tokenizer.json").unlink()
    assert "there is no tokenizer.json, with which engines decode" in refusal(capsys, tmp_path, *here)


def test_a_tokenizer_of_another_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(9)])
    tokenizer.save_pretrained(folder)
    printed = refusal(capsys, tmp_path, *HF, f"model.path={folder}")
    assert f"its tokenizer has {len(tokenizer)} tokens, its config.json a vocab_size of" in printed


def test_what_vllm_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    deepseek = save(make("deepseek"), tmp_path / "deepseek")
    edit(deepseek / "config.json", topk_method=None)
    vllm = ["cluster=ray", "engine=vllm", *HF]
    printed = refusal(capsys, tmp_path, *vllm, f"model.path={deepseek}")
    assert "topk_method=None" in printed and '"topk_method": "noaux_tc"' in printed and "engine=torch" in printed


@pytest.mark.parametrize("drafts", [0, 1])
def test_vllm_has_no_adapters_beside_experts(capsys: pytest.CaptureFixture[str], tmp_path: Path, drafts: int) -> None:
    """Ours and that of transformers; drafts come from modules that only models with experts have."""
    vllm = ["cluster=ray", "engine=vllm", "trainer.lora={served: adapter}"]
    ours = [f"model.architecture.num_nextn_predict_layers={drafts}", f"engine.speculative_tokens={drafts}"]
    said = "trainer.lora.served=adapter: vLLM's kernels for routed experts do not run with an adapter beside them"
    assert said in refusal(capsys, tmp_path, *vllm, *ours)
    deepseek = save(make("deepseek"), tmp_path / "deepseek")
    assert said in refusal(capsys, tmp_path, *vllm, *HF, f"model.path={deepseek}")


def test_a_dense_model_is_served_with_its_adapter(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path
) -> None:
    """The largest rank that vLLM takes is taken."""
    lora = "trainer.lora={served: adapter, rank: 512}"
    sizes = ["data.train_size=50", "data.eval_size=20", f"output_dir={tmp_path}/run", "dry_run=true"]
    grpo.main(["cluster=ray", "engine=vllm", *HF, f"model.path={folder}", lora, *sizes])
    assert "the data, the model and the reward are in order" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{rank: 0}", ["trainer.lora.rank=0", "at least 1"]),
        ("{alpha: -1}", ["trainer.lora.alpha=-1", "above 0"]),
        ("{rnk: 4}", ["trainer.lora.rnk", "did you mean 'rank'"]),
        ("{rank: many}", ["trainer.lora.rank='many'", "wrong type", "integer"]),
        ("4", ["trainer.lora=4", "group of keys"]),
        ("{targets: [q_proj]}", ["trainer.lora.targets=('q_proj',)", "kv_b_proj, o_proj, q_a_proj, q_b_proj"]),
        ("{targets: [up_proj]}", ["up_proj cannot be a target", "peft would take it for the routed experts"]),
        ("{targets: some}", ["trainer.lora.targets='some'", "all-linear"]),
        ("{served: both}", ["trainer.lora.served='both' is unknown; use merged or adapter"]),
        ("{served: adapter}", ["trainer.lora.served=adapter needs engine=vllm; engine=torch", "served=merged"]),
        ("{served: adapter, rank: 513}", ["trainer.lora.rank=513", "rank 512 at most", "served=merged"]),
    ],
)
def test_wrong_adapters(capsys: pytest.CaptureFixture[str], tmp_path: Path, value: str, words: list[str]) -> None:
    printed = refusal(capsys, tmp_path, f"trainer.lora={value}")
    for word in words:
        assert word in printed


def test_a_plan_counts_adapters_and_the_cache(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    lora = "trainer.lora={rank: 4, alpha: 8, targets: [q_proj, v_proj]}"
    common = [*HF, f"model.path={folder}", "data.train_size=50", "data.eval_size=20", f"output_dir={tmp_path}/run"]
    grpo.main([*common, lora, "dry_run=true"])
    printed = capsys.readouterr().out
    numbers = 2 * 4 * ((64 + 64) + (64 + 32))
    assert f"{numbers:,} parameters are trained" in printed
    assert "KV cache         64 numbers per token and layer, 512 bytes per token in fp32" in printed
    assert "nothing was started; the data, the model and the reward are in order" in printed
    sft.main([*common, "--cfg", "job"])
    assert "lora: null" in (printed := capsys.readouterr().out) and "LoRA" not in printed
    assert not (tmp_path / "run").exists() and torch.get_num_threads() > 0


def test_a_pipeline_needs_our_own_class(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    ranks = ["cluster=ray", "trainer=deepspeed", "trainer.num_ranks=2", "trainer.pipeline=2"]
    printed = refusal(capsys, tmp_path, *HF, f"model.path={folder}", *ranks)
    assert "trainer.pipeline=2: model.path=" in printed and "whose layers stay together; set it to 1" in printed
