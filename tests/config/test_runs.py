"""What a run refuses that needs more than one of its groups, and what it says of itself, counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkit.algo.losses import GrpoLoss
from rlkit.config import LoraConfig
from rlkit.config.demonstrations import PartConfig
from rlkit.config.placement import Demand
from rlkit.config.runs import ContextStage
from rlkit.errors import UserError
from tests.config.variants import but, default

LOCAL = {"cluster.kind": "local", "engine.kind": "torch", "trainer.kind": "torch"}
ADAPTER = LoraConfig(served="adapter")


def stages(*lengths: int) -> tuple[ContextStage, ...]:
    return tuple(ContextStage(length=length, factor=2.0, source="", tasks={}) for length in lengths)


REFUSED: Sequence[tuple[str, dict[str, Any], list[str]]] = [
    ("grpo", {"seed": -1}, ["seed=-1 must be at least 0", "0 is the default"]),
    ("grpo", {"seed": 1.5}, ["seed=1.5 must be a whole number"]),
    ("grpo", {"resume": "maybe"}, ["resume='maybe' is unknown; use auto or never"]),
    ("grpo", {"resume": "nevr"}, ["resume='nevr' is unknown", "did you mean 'never'?"]),
    ("grpo", {"cluster.kind": "local", "trainer.kind": "torch"},
     ["engine=vllm needs a process of its own; use cluster=ray, or engine=torch"]),
    ("grpo", LOCAL | {"engine.num_engines": 2},
     ["cluster=local is one process, but engine.num_engines=2; set it to 1 or use cluster=ray"]),
    ("grpo", {"cluster.kind": "local", "engine.kind": "torch", "trainer.num_ranks": 2},
     ["cluster=local is one process, but trainer.num_ranks=2; set it to 1 or use cluster=ray"]),
    ("grpo", {"data.eval_size": 0}, ["data.eval_size=0 must be at least 1"]),
    ("grpo", {"evaluation.sampling.max_new_tokens": 192},
     ["evaluation.sampling.max_new_tokens=192 leaves no room for a prompt in engine.max_model_len=192",
      "lower the first or raise the second"]),
    ("grpo", {"algo.sampling.max_new_tokens": 500},
     ["algo.sampling.max_new_tokens=500 leaves no room for a prompt in engine.max_model_len=192"]),
    ("grpo", {"engine.max_model_len": 64}, ["max_new_tokens=64 leaves no room", "engine.max_model_len=64"]),
    ("grpo", {"engine.dtype": "fp8", "trainer.dtype": "bf16"},
     ["engine.dtype=fp8", "trainer.dtype=bf16", "set trainer.dtype=fp8_weights, or engine.dtype=bf16"]),
    ("grpo", {"engine.dtype": "fp8", "trainer.dtype": "fp32"}, ["trainer.dtype=fp32", "set trainer.dtype=fp8_weights"]),
    ("grpo", {"trainer.lora": ADAPTER, "engine.kind": "torch"},
     ["trainer.lora.served=adapter needs engine=vllm; engine=torch takes merged weights",
      "set trainer.lora.served=merged"]),
    ("grpo", {"trainer.lora": ADAPTER, "engine.tensor_parallel": 2},
     ["trainer.lora.served=adapter needs engine.tensor_parallel=1, not 2", "set trainer.lora.served=merged, or"]),
    ("grpo", {"engine.num_engines": 3},
     ["algo.prompts_per_step=32 cannot be dealt evenly to engine.num_engines=3; use a multiple of it"]),
    ("grpo", {"trainer.num_ranks": 3},
     ["algo.prompts_per_step x algo.group_size / algo.minibatches = 256 rollouts",
      "cannot be dealt evenly to trainer.num_ranks=3; change one of them"]),
    ("grpo", {"algo.minibatches": 64, "trainer.num_ranks": 8}, ["= 4 rollouts", "trainer.num_ranks=8"]),
    ("grpo", {"trainer.num_ranks": 6, "trainer.pipeline": 2},
     ["= 256 rollouts", "trainer.num_ranks=6 / trainer.pipeline=2 = 3 pipelines"]),
    ("grpo", {"algo.mtp_weight": 0.1, "trainer.lora": LoraConfig()},
     ["algo.mtp_weight=0.1 trains MTP modules, which trainer.lora leaves as they are",
      "set it to 0, or trainer.lora to null"]),
    ("sft", {"trainer.num_ranks": 3},
     ["sft.batch_size=128 cannot be dealt evenly to trainer.num_ranks=3; use a multiple of it"]),
    ("sft", {"sft.batch_size": 3, "trainer.num_ranks": 4, "trainer.pipeline": 2},
     ["sft.batch_size=3", "trainer.num_ranks=4 / trainer.pipeline=2 = 2 pipelines"]),
    ("sft_then_grpo", {"data.source": "", "data.mixture": (PartConfig(source="a.jsonl"),)},
     ["data.source='' asks nothing, and GRPO needs questions; set it to rows with questions"]),
    ("extend_context", {"sft.epochs": 2.0, "sft.steps": 0},
     ["sft.epochs does not go with recipe extend_context", "set sft.steps, which is the same in every stage"]),
    ("extend_context", {"data.mixture": (PartConfig(source="a.jsonl"),)},
     ["data.mixture does not go with recipe extend_context", "set stages[].source, the samples of each stage"]),
    ("extend_context", {"stages": ()}, ["stages: lengths [] must rise", "reorder them or drop some"]),
    ("extend_context", {"stages": stages(512, 256)}, ["stages: lengths [512, 256] must rise from stage to stage"]),
    ("extend_context", {"stages": stages(256, 256)}, ["stages: lengths [256, 256] must rise from stage to stage"]),
    ("extend_context", {"trainer.dtype": "fp8"},
     ["trainer.dtype=fp8: a stage starts from the export of the one before", "set trainer.dtype=bf16, or run one"]),
    ("extend_context", {"stages": stages(256, 768)},
     ["stages[1].length=768: sft.batch_size=64 samples of 256 tokens are no whole number", "change one of the three"]),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "changes", "words"), REFUSED)
def test_what_does_not_go_together(recipe: str, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        but(default(recipe), changes)
    message = str(refused.value)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("grpo", LOCAL),
        ("grpo", {"engine.max_model_len": 65}),
        ("grpo", {"engine.dtype": "fp8", "trainer.dtype": "fp8_weights"}),
        ("grpo", {"engine.dtype": "fp8", "trainer.dtype": "fp8"}),
        ("grpo", {"trainer.lora": ADAPTER}),
        ("grpo", {"trainer.lora": LoraConfig(), "engine.kind": "torch"}),
        ("grpo", {"trainer.lora": LoraConfig(), "engine.tensor_parallel": 2}),
        ("grpo", {"engine.num_engines": 16, "trainer.num_ranks": 4, "trainer.pipeline": 2}),
        ("grpo", {"algo.minibatches": 64, "trainer.num_ranks": 4}),
        ("sft", {"sft.batch_size": 3, "trainer.num_ranks": 3}),
        ("sft", {"data.source": "", "data.mixture": (PartConfig(source="a.jsonl"),)}),
        ("extend_context", {"stages": stages(256), "trainer.dtype": "fp8"}),
        ("extend_context", {"stages": stages(256, 16384)}),
    ],
)
def test_what_is_just_allowed(recipe: str, changes: dict[str, Any]) -> None:
    """Each differs by one value from something that is refused above."""
    but(default(recipe), changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 1}, "length=1 must be at least 2"),
        ({"factor": 0.5}, "factor=0.5 must be at least 1; DeepSeek-V3 takes 40"),
        ({"factor": float("nan")}, "factor=nan must be a finite number, at least 1"),
    ],
)
def test_a_stage_that_stretches_nothing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ContextStage(**{"length": 256, "factor": 2.0, "source": "", "tasks": {}} | values)


@pytest.mark.parametrize(
    ("recipe", "changes", "demand", "processes"),
    [
        ("grpo", {}, Demand(engines=1, workers=1, ranks=1), 2),
        ("grpo", {"engine.num_engines": 2, "engine.tensor_parallel": 4, "trainer.num_ranks": 8},
         Demand(engines=2, workers=4, ranks=8), 16),
        ("grpo", {"reward.fn": "model:judge"}, Demand(engines=1, workers=1, ranks=1, judges=1), 3),
        ("grpo", {"reward.fn": "model:judge", "reward.kwargs": {"actors": 3}, "trainer.num_ranks": 2},
         Demand(engines=1, workers=1, ranks=2, judges=3), 6),
        ("grpo", {"reward.fn": "composite", "reward.kwargs": {"rewards": [["number", 1.0], ["model:a", 0.5]]}},
         Demand(engines=1, workers=1, ranks=1, judges=1), 3),
        ("distill_generate", {"engine.num_engines": 3}, Demand(engines=3, workers=1, ranks=0), 3),
        ("eval", {"engine.num_engines": 2, "engine.tensor_parallel": 2}, Demand(engines=2, workers=2, ranks=0), 4),
        ("reward_model", {"trainer.num_ranks": 4}, Demand(engines=0, workers=1, ranks=4), 4),
    ],
)  # fmt: skip
def test_every_process_is_counted(recipe: str, changes: dict[str, Any], demand: Demand, processes: int) -> None:
    found = but(default(recipe), changes).demand
    assert found == demand and found.processes == processes


def test_the_longest_completion_is_that_of_any_stage() -> None:
    def longest(recipe: str, evaluated: int, **sampled: int) -> int:
        words = {"evaluation.sampling.max_new_tokens": evaluated}
        return but(
            default(recipe), words | {key.replace("__", "."): n for key, n in sampled.items()}
        ).longest_completion

    assert longest("sft", 50) == 50
    assert longest("grpo", 50, algo__sampling__max_new_tokens=40) == 50
    assert longest("grpo", 50, algo__sampling__max_new_tokens=60) == 60
    assert longest("sft_then_grpo", 50, algo__sampling__max_new_tokens=70) == 70


def test_a_reference_is_kept_for_a_penalty_alone() -> None:
    assert default("grpo").needs_reference and not default("sft").needs_reference
    assert not but(default("grpo"), {"algo.loss": GrpoLoss(kl_coef=0.0)}).needs_reference
    assert not default("reward_model").needs_reference


def test_engines_keep_an_adapter_only_where_it_is_served_so() -> None:
    cfg = default("grpo")
    assert cfg.served_adapter is None and default("eval").served_adapter is None
    assert but(cfg, {"trainer.lora": LoraConfig()}).served_adapter is None
    assert but(cfg, {"trainer.lora": ADAPTER}).served_adapter == ADAPTER


def test_what_grpo_does_in_words() -> None:
    """24 steps x 32 prompts are 7.68 times 100 prompts; 32 x 8 = 256 rollouts of at most 64 tokens are 16,384."""
    cfg = default("grpo")
    assert cfg.amounts(100, None) == [
        ("GRPO", "24 steps x 32 groups x 8 rollouts = 256 a step"),
        ("tokens per step", "at most 16,384 sampled, in rollouts of up to 64"),
        ("optimiser steps", "1 a step on 256 rollouts each"),
        ("epochs", "7.68 of 100 prompts"),
    ]
    four = but(cfg, {"algo.minibatches": 4}).amounts(None, None)
    assert four[2] == ("optimiser steps", "4 a step on 64 rollouts each")
    assert "epochs" not in dict(four), "nobody knows how many prompts there are"


def test_what_sft_does_in_words() -> None:
    """600 steps x 128 are 76.8 times 1,000 demonstrations, and 12 times 6,400."""
    cfg = but(default("sft"), {"data.train_size": 6400, "trainer.num_ranks": 2})
    assert cfg.amounts(None, 1000) == [("SFT", "600 steps x 128 demonstrations, 76.80 epochs of 1,000; 64 per rank")]
    assert cfg.amounts(None, None) == [("SFT", "600 steps x 128 demonstrations, 12.00 epochs of 6,400; 64 per rank")]
    unknown = but(cfg, {"data.train_size": -1}).amounts(None, None)
    assert unknown == [("SFT", "600 steps x 128 demonstrations; 64 per rank")]
    streamed = but(cfg, {"data.mixture": (PartConfig(source="a.jsonl", stream=True),)}).amounts(None, None)
    assert streamed == unknown, "data.train_size is not that of a stream"
    counted = but(cfg, {"sft.epochs": 2.5, "sft.steps": 0}).amounts(None, 1000)
    assert counted == [("SFT", "2.5 epochs")]
    both = default("sft_then_grpo").amounts(100, 1000)
    assert [label for label, _ in both] == ["SFT", "GRPO", "tokens per step", "optimiser steps", "epochs"]


def test_a_recipe_without_epochs_counts_nothing() -> None:
    assert default("grpo").counted(None) is default("grpo")
    assert default("distill_generate").amounts(10, None) == []


def test_a_loss_that_cannot_be_found_is_told_before_anything_starts(tmp_path: Path) -> None:
    cfg = but(default("grpo"), {"algo.loss_fn": f"{tmp_path}/mine.py:loss"})
    with pytest.raises(UserError, match=r"mine\.py"):
        cfg.check_files()
    (tmp_path / "mine.py").write_text("def loss(batch):\n    return 0\n")
    with pytest.raises(UserError, match="other"):
        but(cfg, {"algo.loss_fn": f"{tmp_path}/mine.py:other"}).check_files()
    default("grpo").check_files()
