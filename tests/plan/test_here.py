"""What is known for certain of a run here, and how numbers are shown."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.lora import add_lora
from rlkit.plan.adapters import adapter_parameters
from rlkit.plan.here import configured_layout, engine_here, trainer_here
from rlkit.plan.layout import Layout
from rlkit.plan.numbers import as_values
from rlkit.plan.orthogonal import orthogonal_parameters
from rlkit.plan.table import amount


def loaded(*words: str) -> tuple[GrpoRun, DeepseekArchitecture]:
    cfg = load_config("grpo", GrpoRun, words)
    assert cfg.model.architecture is not None
    return cfg, DeepseekArchitecture(config=cfg.model.architecture)


def test_the_layout_is_that_of_the_configuration() -> None:
    words = ["num_ranks=4", "expert_parallel=2", "zero_stage=3", "offload=all", "recompute=true"]
    cfg, _ = loaded(*(f"trainer.{word}" for word in words))
    assert configured_layout(cfg) == Layout(ranks=4, expert_parallel=2, zero_stage=3, offload="all", recompute=True)


def test_stages_share_the_layers_and_the_fullest_one_counts() -> None:
    words = ["model=deepseek_v3_671b", "trainer.num_ranks=1024", "trainer.expert_parallel=64"]
    words.append("algo.prompts_per_step=128")
    whole, architecture = loaded(*words)
    cut, _ = loaded(*words, "trainer.pipeline=16")
    assert configured_layout(cut).pipeline_stages == 16
    needs, everything = trainer_here(cut, architecture).states, trainer_here(whole, architecture).states
    # The first stage has both ends of the model beside its layers, and fewer ranks share its optimiser.
    assert everything / 16 < needs < everything / 4


def test_offload_on_a_cpu_moves_nothing_out_of_the_machine() -> None:
    cfg, architecture = loaded("trainer.zero_stage=2")
    away, _ = loaded("trainer.zero_stage=2", "trainer.offload=optimizer")
    there, moved = trainer_here(cfg, architecture), trainer_here(away, architecture)
    assert moved.states < there.states
    assert moved.resting == there.resting


def test_adapters_are_counted_as_peft_makes_them() -> None:
    cfg, architecture = loaded("trainer.lora={rank: 4}", "trainer.bias_update_speed=0")
    model = architecture.new_model()
    assert cfg.trainer.lora is not None
    add_lora(model, rank=4, alpha=8, targets=cfg.trainer.lora.targets, seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter_parameters(cfg, architecture) == trained
    needs = trainer_here(cfg, architecture)
    assert (needs.gradients, needs.optimiser, needs.reference) == (4 * trained, 12 * trained, 4 * trained)
    assert adapter_parameters(*loaded()) == 0


def test_muon_is_counted_with_its_own_moments() -> None:
    cfg, architecture = loaded("trainer.optimizer=muon")
    adamw, _ = loaded()
    orthogonal = orthogonal_parameters(cfg, architecture)
    assert 0 < orthogonal < architecture.size().parameters and orthogonal_parameters(adamw, architecture) == 0
    saved = trainer_here(adamw, architecture).optimiser - trainer_here(cfg, architecture).optimiser
    assert saved == 4 * orthogonal


def test_an_engine_by_hand() -> None:
    cfg, architecture = loaded("engine.max_num_seqs=3", "engine.max_model_len=100", "engine.dtype=bf16")
    needs = engine_here(cfg, architecture)
    assert needs.weights == 2 * architecture.size().parameters
    assert needs.cache == 3 * 100 * 4 * (32 + 16) * 2


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (26_900_000_000, "26.9 GB"),
        (999_900_000_000, "999.9 GB"),
        (1_369_000_000_000, "1.37 TB"),
    ],
)
def test_amounts_in_words(nbytes: int, words: str) -> None:
    assert amount(nbytes) == words


def test_values_for_programs_have_properties_as_well() -> None:
    @dataclass(frozen=True)
    class Box:
        side: int
        inner: tuple[Box, ...] = ()

        @property
        def area(self) -> int:
            return self.side**2

    found = as_values(Box(2, (Box(3),)))
    assert found == {"side": 2, "inner": [{"side": 3, "inner": [], "area": 9}], "area": 4}
    assert json.loads(json.dumps(found)) == found
