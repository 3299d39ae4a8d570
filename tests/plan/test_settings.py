"""The plan's own keys: what they may be, and what is the recipe's."""

from __future__ import annotations

import pytest
import torch

from rlkit.errors import UserError
from rlkit.plan import hardware
from rlkit.plan.hardware import KNOWN, find_hardware
from rlkit.plan.settings import PlanSettings, read_settings


def test_words_are_split_between_plan_and_recipe() -> None:
    words = ["hardware=h20", "model=deepseek_v3_671b", "nodes=12", "rehearse=true", "price=3", "algo.steps=5"]
    settings, rest = read_settings(words)
    assert settings == PlanSettings(hardware="h20", nodes=12, rehearse=True, price=3.0)
    assert rest == ["model=deepseek_v3_671b", "algo.steps=5"]


def test_a_key_that_is_given_wins_over_its_preset() -> None:
    settings, _ = read_settings(["deployment=v3_training", "zero_stage=2"])
    assert (settings.gpus, settings.expert_parallel, settings.pipeline_stages, settings.zero_stage) == (2048, 64, 16, 2)
    settings, _ = read_settings(["nodes=16", "deployment=v3_training"])
    assert (settings.gpus, settings.nodes) == (None, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpus=8", "nodes=1"], "gpus=8 and nodes=1 both say how many GPUs; give one of them"),
        (["gpus=many"], "gpus=many has the wrong type; give a whole number"),
        (["gpus=0"], "gpus=0 must be at least 1"),
        (["gpus=true"], "gpus=true has the wrong type; give a whole number"),
        (["rehearse=3"], "rehearse=3 has the wrong type; give true or false"),
        (["price=nan"], "price=nan must be a finite number"),
        (["price=cheap"], "price=cheap has the wrong type; give a number"),
        (["zero_stage=0"], "zero_stage=0 is unknown; use 1, 2 or 3"),
        (["offload=disk"], "offload='disk' is unknown; use none or optimizer or all"),
        (["trainer_dtype=fp4"], "trainer_dtype='fp4' is unknown; use fp32 or bf16 or fp8 or fp8_weights"),
        (["deployment=v3_decod"], r"deployment='v3_decod' is unknown; .*did you mean 'v3_decode'\?"),
        (["prompt_tokens=-1"], "prompt_tokens=-1 must be at least 0"),
    ],
)
def test_values_that_are_none(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings(words)


def test_hardware_by_name() -> None:
    for name, found in KNOWN.items():
        assert find_hardware(name) is found and found.name == name and found.source
        assert found.bf16 < found.fp8 and found.outside < found.inside < found.memory_bandwidth
    with pytest.raises(UserError, match=r"hardware='h10' is unknown; use one of h100, .*, this .did you mean 'h100'"):
        find_hardware("h10")


def test_this_machine_is_tried() -> None:
    found = find_hardware("this")
    assert found.is_cpu != torch.cuda.is_available()
    assert found.memory > 0 and found.bf16 > 0 and found.memory_bandwidth > 0


def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "NVIDIA H20-3e", 141 * 10**9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: Properties)
    found = find_hardware("this")
    assert (found.memory, found.bf16, found.per_node, found.is_cpu) == (141 * 10**9, KNOWN["h20"].bf16, 8, False)


def test_rates_by_dtype() -> None:
    found = KNOWN["h100"]
    assert found.rate("fp8") == found.fp8
    assert found.rate("fp8_weights") == found.rate("bf16") == found.bf16  # its activations are bf16


def test_the_limit_of_a_container_is_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    file = tmp_path / "memory.max"  # type: ignore[operator]
    file.write_text("1000\n")
    monkeypatch.setattr(hardware, "CGROUP_MEMORY", file)
    assert hardware.main_memory() == 1000
