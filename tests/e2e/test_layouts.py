"""However its ranks share the model out, a recipe ends with the same model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.e2e.runs import GRPO_ONLY, SPREAD_REWARD, final_weights, finish_here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray")]
# Experts on two ranks and nothing else, with vLLM: in `test_kill.py`.
LAYOUTS = {
    "everything at once": [
        *("trainer.num_ranks=4", "trainer.expert_parallel=2", "trainer.zero_stage=3", "trainer.offload=all"),
        "trainer.recompute=true",
    ],
    "two stages of layers": ["trainer.num_ranks=2", "trainer.pipeline=2"],
}


def test_a_recipe_ends_with_the_same_model(tmp_path: Path) -> None:
    """On Ray, compared on the exported model with one rank in this process, its routers' biases bit for bit."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(SPREAD_REWARD)
    common = [*GRPO_ONLY, f"reward={plugin}:spread", "algo.steps=2", "data.eval_size=4", "checkpoint.every=0"]
    common += [
        "engine=torch",
        "trainer.bias_update_speed=0.001",
        "trainer.balance_coef=1e-4",
        "trainer.weight_decay=0.1",
    ]
    layers = "model.architecture.num_hidden_layers="
    common = [f"{layers}4" if word.startswith(layers) else word for word in common]  # two for each stage of a pipeline
    finish_here("grpo", *common, "cluster=local", f"output_dir={tmp_path}/alone")
    alone = final_weights(tmp_path / "alone")
    start = final_weights(tmp_path / "alone", "initial")
    assert any((alone[name] - start[name]).norm() > 1e-3 * start[name].norm() for name in start)
    for name, layout in LAYOUTS.items():
        folder = tmp_path / name.replace(" ", "-")
        printed = finish_here("grpo", *common, *layout, f"output_dir={folder}")
        assert printed.count("engine and trainer agree within") >= 1
        found = final_weights(folder)
        assert found.keys() == alone.keys()
        for key, tensor in alone.items():
            if key.endswith("e_score_correction_bias"):
                assert torch.equal(found[key], tensor), f"{name}: {key}"
            else:
                error = float((found[key] - tensor).norm() / tensor.norm())
                assert error <= 1e-5, f"{name}: {key} differs by {error:.1e}"


def test_a_run_goes_on_in_another_layout(tmp_path: Path) -> None:
    """Two steps with experts on two ranks, the third on one rank: the model of three steps on one rank."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(SPREAD_REWARD)
    common = [*GRPO_ONLY, f"reward={plugin}:spread", "algo.steps=3", "data.eval_size=4", "engine=torch"]
    common += ["trainer.bias_update_speed=0.001", "checkpoint.every=2", "checkpoint.keep=2"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    finish_here("grpo", *common, "cluster=local", f"output_dir={whole}")
    finish_here("grpo", *common, "trainer.num_ranks=2", "trainer.expert_parallel=2", f"output_dir={moved}")
    # As if it had ended after the second step.
    shutil.rmtree(moved / "checkpoints" / "grpo-000003")
    shutil.rmtree(moved / "model")
    printed = finish_here("grpo", *common, f"output_dir={moved}")
    assert "resuming after grpo step 2" in printed
    expected, found = final_weights(whole), final_weights(moved)
    for key, tensor in expected.items():
        error = float((found[key] - tensor).norm() / tensor.norm().clamp(min=1e-6))
        assert error <= 1e-5, f"{key} differs by {error:.1e}"
