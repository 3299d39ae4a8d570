"""Every name is published by one rank that holds it, and the ranks publish about as many bytes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from rlkit.model import DeepseekV3
from rlkit.model.experts import ExpertShare
from rlkit.model.files.names import published_names
from rlkit.model.load import load_model
from rlkit.train.publishing import share_of
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from tests.hf_folders import make, save
from tests.model.test_published import shipped
from tests.model.tiny import BASE, seeded
from tests.train.test_trainer import CFG


@cache
def published_sizes() -> dict[str, int]:
    """The bytes in bf16 of every weight of a DeepSeek-V3 with five layers."""
    table = published_names(replace(shipped("deepseek_v3_671b"), num_hidden_layers=5))
    return {name: 2 * math.prod(place.shape) for name, place in table.items()}


def expert_of(name: str) -> int | None:
    _, found, rest = name.partition(".mlp.experts.")
    return int(rest.split(".")[0]) if found else None


def totals(sizes: dict[str, int], shares: Sequence[Sequence[str]]) -> list[int]:
    return [sum(sizes[name] for name in share) for share in shares]


def test_two_replicas_cut_the_table_in_the_middle() -> None:
    sizes = {"a": 10, "b": 30, "c": 20, "d": 20, "e": 1}
    shares = [share_of(sizes, lambda name: (0, 1), rank) for rank in range(2)]
    assert shares == [("a", "b"), ("c", "d", "e")], "40 and 41 of 81"


def test_a_name_goes_to_where_its_middle_lies() -> None:
    sizes = {"a": 10, "b": 100, "c": 10}
    assert [share_of(sizes, lambda name: range(3), rank) for rank in range(3)] == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize("num_ranks", [1, 2, 7, 24])
def test_replicas_publish_every_name_once_in_order_and_evenly(num_ranks: int) -> None:
    sizes = published_sizes()
    shares = [share_of(sizes, lambda name: range(num_ranks), rank) for rank in range(num_ranks)]
    assert [name for share in shares for name in share] == list(sizes), "runs of the table, one behind the other"
    even = sum(sizes.values()) / num_ranks
    assert max(abs(total - even) for total in totals(sizes, shares)) <= max(sizes.values())


@pytest.mark.parametrize(("expert_parallel", "replicas"), [(4, 1), (4, 2)])
def test_experts_are_published_by_their_owners_alone(expert_parallel: int, replicas: int) -> None:
    """Rank r holds experts of part r % E; the rest of the model is on every rank."""
    sizes, num_ranks = published_sizes(), expert_parallel * replicas
    per_rank = 256 // expert_parallel

    def owners(name: str) -> Sequence[int]:
        expert = expert_of(name)
        return range(num_ranks) if expert is None else range(expert // per_rank, num_ranks, expert_parallel)

    shares = [share_of(sizes, owners, rank) for rank in range(num_ranks)]
    published = [name for share in shares for name in share]
    assert sorted(published) == sorted(sizes) and len(published) == len(set(published))
    assert all(rank in owners(name) for rank, share in enumerate(shares) for name in share)
    position = {name: place for place, name in enumerate(sizes)}
    assert all([*share] == sorted(share, key=position.__getitem__) for share in shares)
    even = sum(sizes.values()) / num_ranks
    assert max(abs(total - even) for total in totals(sizes, shares)) <= 2 * max(sizes.values())


def test_a_rank_that_holds_more_alone_gets_less_of_what_all_hold() -> None:
    """Rank 0 alone holds 60 of 120 bytes, rank 1 alone 0: all of what both hold goes to rank 1."""
    sizes = {"own": 60, **{f"shared.{i}": 10 for i in range(6)}}
    shares = [share_of(sizes, lambda name: (0,) if name == "own" else (0, 1), rank) for rank in range(2)]
    assert totals(sizes, shares) == [60, 60]
    sizes["own"] = 40  # 100 in all: one of those that both hold is left for rank 0
    shares = [share_of(sizes, lambda name: (0,) if name == "own" else (0, 1), rank) for rank in range(2)]
    assert totals(sizes, shares) == [50, 50]


def test_random_owners_and_sizes_lose_and_double_nothing() -> None:
    draw = random.Random(0)
    for _ in range(200):
        num_ranks = draw.randint(1, 5)
        sizes = {f"t{i}": draw.choice([0, 1, 7, 1000]) for i in range(draw.randint(0, 12))}
        held = {name: sorted(draw.sample(range(num_ranks), draw.randint(1, num_ranks))) for name in sizes}
        shares = [share_of(sizes, held.__getitem__, rank) for rank in range(num_ranks)]
        assert sorted(name for share in shares for name in share) == sorted(sizes)
        assert all(rank in held[name] for rank, share in enumerate(shares) for name in share)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "deepseek", "ours"])
def test_what_trainers_publish_is_all_that_one_of_them_gives(kind: str, tmp_path: Path) -> None:
    """Qwen2 with its tied head, which transformers does not list but some engines ask for; ours with an MTP module."""
    if kind == "ours":
        model = seeded(replace(BASE, num_nextn_predict_layers=1))
    else:
        model = load_model(save(make(kind), tmp_path / "base"), torch.float32, "hf")
    trainer = ModelTrainer(model, TorchStepper(model, CFG), reference=None)
    given = [name for name, _ in trainer.weights()]
    assert (kind == "qwen2") == ("lm_head.weight" not in model.published())
    assert sorted(model.all_published()) == sorted(given)
    shares = [trainer.share(rank, 3) for rank in range(3)]
    assert all(shares) and [name for share in shares for name in share] == list(model.all_published())


@pytest.mark.parametrize(("num_ranks", "parts"), [(2, 2), (4, 2), (8, 4)])
def test_ranks_that_share_out_experts_publish_what_they_hold(num_ranks: int, parts: int) -> None:
    published: list[str] = []
    for rank in range(num_ranks):
        model = DeepseekV3(BASE, share=ExpertShare(rank=rank % parts, size=parts))
        trainer = ModelTrainer(model, TorchStepper(model, CFG), reference=None)
        held = [name for name, _ in trainer.weights()]
        share = trainer.share(rank, num_ranks)
        assert share and [name for name in held if name in share] == list(share)
        published += share
    assert sorted(published) == sorted(name for name, _ in DeepseekV3(BASE).checkpoint_weights())


def test_a_name_that_nobody_holds_is_named() -> None:
    with pytest.raises(ValueError, match="b: no rank holds it"):
        share_of({"a": 1, "b": 1}, lambda name: (0,) if name == "a" else (), 0)
