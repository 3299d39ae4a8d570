"""Into how many slices a model can be cut, by hand; vLLM's own refusals come after seconds, and in other words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.model.config import DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.load import read_architecture
from rlkit.model.split import padded_vocabulary, split_problem
from tests.hf_folders import make, save


def shape(model: str) -> DeepseekV3Config:
    architecture = load_config("grpo", GrpoRun, [f"model={model}"]).model.architecture
    assert architecture is not None
    return architecture


@pytest.mark.parametrize(("size", "padded"), [(1, 64), (64, 64), (65, 128), (129_280, 129_280), (49_153, 49_216)])
def test_the_vocabulary_is_padded_to_64(size: int, padded: int) -> None:
    assert padded_vocabulary(size) == padded


def test_the_numbers_that_work_are_named() -> None:
    sizes = {"heads": 12, "width": 64}
    assert split_problem(sizes, 4, "x.", {}) is None
    assert split_problem(sizes, 3, "x.", {}) == "x.width=64 cannot be divided by it; use 1, 2 or 4"
    assert split_problem(sizes, 8, "x.", {}) == "x.heads=12 cannot be divided by it; use 1, 2 or 4"
    assert (
        split_problem(sizes, 4, "", {"width": 32}) == "width=64 cannot be divided by it in multiples of 32; use 1 or 2"
    )
    assert split_problem({"width": 7}, 2, "", {}) == "width=7 cannot be divided by it; use 1 or 7"


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16, 32])
def test_v3_is_cut_into_what_it_is_served_with(workers: int) -> None:
    """V3's decoding has TP4, and 671B is commonly served with TP8 and TP16 (vLLM's and SGLang's recipes)."""
    assert DeepseekArchitecture(config=shape("deepseek_v3_671b")).vllm_split_problem(workers, on_gpu=True) is None


def test_v3_is_not_cut_otherwise() -> None:
    problem = DeepseekArchitecture(config=shape("deepseek_v3_671b")).vllm_split_problem(3, on_gpu=True)
    assert problem is not None and "num_attention_heads=128 cannot be divided" in problem and "or 128" in problem


def test_narrow_experts_are_cut_on_gpus_alone() -> None:
    narrow = DeepseekArchitecture(config=replace(shape("deepseek_v3_tiny"), moe_intermediate_size=32))
    assert narrow.vllm_split_problem(2, on_gpu=True) is None
    problem = narrow.vllm_split_problem(2, on_gpu=False)
    assert problem is not None and problem.endswith(
        "moe_intermediate_size=32 cannot be divided by it in multiples of 32; use 1"
    )


def test_a_dense_width_counts_where_a_layer_is_dense() -> None:
    config = replace(shape("deepseek_v3_tiny"), intermediate_size=99, first_k_dense_replace=0)
    assert DeepseekArchitecture(config=config).vllm_split_problem(2, on_gpu=True) is None
    problem = DeepseekArchitecture(config=replace(config, first_k_dense_replace=1)).vllm_split_problem(2, on_gpu=True)
    assert problem is not None and "intermediate_size=99" in problem


def test_models_of_transformers_by_the_names_in_their_config(tmp_path: Path) -> None:
    save(make("llama", num_attention_heads=4, num_key_value_heads=2, intermediate_size=96), tmp_path)
    architecture = read_architecture(tmp_path, "hf")
    assert architecture.vllm_split_problem(2, on_gpu=False) is None
    # Four workers: two of them hold the same key head.
    assert architecture.vllm_split_problem(4, on_gpu=False) is None
    problem = architecture.vllm_split_problem(3, on_gpu=False)
    assert problem is not None and "num_attention_heads=4 cannot be divided by it; use 1" in problem
