"""vLLM's own arguments: known ones travel, those that rlkit sets are refused with the key to use instead."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.engine.vllm import VllmEngine
from rlkit.engine.vllm.options import ALWAYS, INSTEAD, NO_KEY, ON_CPU, argument_names, check_options
from rlkit.engine.vllm.start import draft_arguments, platform_arguments
from rlkit.errors import UserError
from tests.hf_reference import VOCAB, HfTrainer, make_model, save_checkpoint

SIZES = {"max_model_len": 128, "max_num_seqs": 8, "kv_cache_gib": 0.1, "threads": 1}


def refused(options: dict[str, Any], *words: str, cuda: bool = False) -> None:
    with pytest.raises(UserError) as refusal:
        check_options(options, cuda=cuda, max_model_len=128)
    for word in words:
        assert word in str(refusal.value), str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "half"}, ["engine.options.dtype='half' is set by engine.dtype", "leave it out here"]),
        ({"model": "x"}, ["set by model.path"]),
        ({"seed": 3}, ["set by seed"]),
        ({"tensor_parallel_size": 2}, ["set by engine.tensor_parallel"]),
        ({"speculative_config": {}}, ["set by engine.speculative_tokens"]),
        ({"gpu_memory_utilization": 0.9}, ["set by engine.memory"]),
        ({"enable_lora": True}, ["set by trainer.lora"]),
        ({"logprobs_mode": "raw_logits"}, ["the trainer needs log-probs of the distribution that was drawn from"]),
        ({"enable_prefix_caching": True}, ["rollouts would not be the same bits again"]),
        ({"pipeline_parallel_size": 2}, ["an engine is placed by engine.tensor_parallel alone"]),
        ({"data_parallel_size": 2}, ["hangs in a process like ours; use engine.num_engines"]),
        ({"data_parallel_backend": "ray"}, ["use engine.num_engines"]),
        ({"max_num_batched_token": 4096}, ["is not an argument of vLLM (did you mean 'max_num_batched_tokens'?)"]),
        ({"zzz": 1}, ["engine.options.zzz is not an argument of vLLM"]),
    ],
)
@pytest.mark.parametrize("cuda", [False, True])
def test_what_contradicts_rlkit_or_is_unknown(options: dict[str, Any], words: list[str], cuda: bool) -> None:
    refused(options, *words, cuda=cuda)


@pytest.mark.parametrize("name", ["enable_expert_parallel", "enable_eplb"])
def test_expert_parallel_is_for_gpus(name: str) -> None:
    refused({name: True}, f"engine.options.{name}=True cannot be set on a CPU", "ends on its first step")
    check_options({name: True}, cuda=True, max_model_len=128)


def test_what_the_cpu_build_does_not_take() -> None:
    for name in ON_CPU:
        refused({name: 1}, f"engine.options.{name}=1 cannot be set on a CPU")
        check_options({name: 1}, cuda=True, max_model_len=128)
    for value in (127, True, "4096"):
        refused({"max_num_batched_tokens": value}, "must be at least engine.max_model_len=128 on a CPU")
    check_options({"max_num_batched_tokens": 128}, cuda=False, max_model_len=128)
    check_options({"max_num_batched_tokens": 64}, cuda=True, max_model_len=128)


@pytest.mark.parametrize(
    "options",
    [
        {"enable_expert_parallel": True, "enable_eplb": True, "eplb_config": {"num_redundant_experts": 32}},
        {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}},
        {"max_num_batched_tokens": 16_384, "async_scheduling": True},
        {},
    ],
)
def test_what_travels(options: dict[str, Any]) -> None:
    check_options(options, cuda=True, max_model_len=128)


def test_everything_that_rlkit_sets_is_refused() -> None:
    """Whoever adds an argument to the engine has to say here which key it belongs to."""
    ours = {"model", "dtype", "max_model_len", "max_num_seqs", "seed", "disable_log_stats", "speculative_config"}
    ours |= {"tensor_parallel_size", "distributed_executor_backend", "gpu_memory_utilization", *ALWAYS}
    assert draft_arguments(1) is not None
    assert ours <= INSTEAD.keys() | NO_KEY.keys()
    assert not INSTEAD.keys() & NO_KEY.keys()


def test_the_arguments_of_a_cpu_are_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MLA_DISABLE", "0")
    names = platform_arguments(False, 128, 0.1, 0.5).keys()
    monkeypatch.setenv("VLLM_MLA_DISABLE", "1")
    names |= platform_arguments(False, 128, 0.1, 0.5).keys()
    assert names - {"max_num_batched_tokens"} <= ON_CPU.keys() | INSTEAD.keys()


@pytest.mark.slow
def test_the_names_are_those_of_vllm_itself_and_one_is_obeyed(tmp_path: Path) -> None:
    trainer = HfTrainer(make_model())
    save_checkpoint(trainer.model, tmp_path)
    with pytest.raises(UserError, match=r"vLLM refuses it \(.*kv_role"):
        VllmEngine(tmp_path, options={"kv_transfer_config": {"kv_connector": "NixlConnector"}}, **SIZES)
    engine = VllmEngine(tmp_path, options={"max_num_batched_tokens": 256}, **SIZES)
    try:
        assert engine._engine.vllm_config.scheduler_config.max_num_batched_tokens == 256
        assert len(engine.logprobs([[i % VOCAB for i in range(100)]] * 4)) == 4
        theirs = {field.name for field in fields(engine._vllm.EngineArgs) if not field.name.startswith("_")}
        assert theirs == argument_names()
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="vLLM's CPU build ends with expert parallelism; needs two GPUs"
)
def test_expert_parallel_computes_what_one_gpu_does(tmp_path: Path) -> None:
    trainer = HfTrainer(make_model())
    save_checkpoint(trainer.model, tmp_path)
    sequences = [[i % VOCAB for i in range(40)]]
    found = []
    for split in ({}, {"tensor_parallel": 2, "options": {"enable_expert_parallel": True}}):
        engine = VllmEngine(tmp_path, **split, **SIZES)
        engine.load(trainer.weights(), 1)
        found.append(engine.logprobs(sequences)[0])
        engine.close()
    assert found[0] == pytest.approx(found[1], abs=1e-4)
