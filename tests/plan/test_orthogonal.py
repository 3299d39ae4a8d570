"""How many parameters Muon trains, added up by hand for a small DeepSeek-V3."""

from __future__ import annotations

from dataclasses import replace

from rlkit.model.config import DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.plan.orthogonal import orthogonal_parameters
from tests.config.variants import but, default
from tests.model.tiny import BASE

HIDDEN, HEADS = 64, 4
ATTENTION = HEADS * (16 + 8) * HIDDEN + (32 + 8) * HIDDEN + HEADS * (16 + 12) * 32 + HIDDEN * HEADS * 12
"""Queries; the latent with the shared rotary key; keys and values from it; the output: 15,360."""
DENSE = 3 * HIDDEN * 96
EXPERT = 3 * HIDDEN * 32


def counted(config: DeepseekV3Config, optimizer: str = "muon") -> int:
    cfg = but(default("sft"), {"trainer.optimizer": optimizer})
    return orthogonal_parameters(cfg, DeepseekArchitecture(config=config))


def test_matrices_of_hidden_layers_by_hand() -> None:
    """One dense layer and two of 8 routed experts and a shared one; no embedding, head, router, norm or bias."""
    config = replace(BASE, num_nextn_predict_layers=0)
    assert ATTENTION == 15_360 and (DENSE, EXPERT) == (18_432, 6_144)
    assert counted(config) == 3 * ATTENTION + DENSE + 2 * 9 * EXPERT == 175_104


def test_what_is_spared_does_not_count() -> None:
    """A wider vocabulary makes embedding and head larger, and both are AdamW's."""
    config = replace(BASE, num_nextn_predict_layers=0)
    assert counted(replace(config, vocab_size=960)) == counted(config)
    assert counted(replace(config, n_routed_experts=16)) - counted(config) == 2 * 8 * EXPERT, "and no router"
    assert counted(replace(config, num_hidden_layers=4)) - counted(config) == ATTENTION + 9 * EXPERT


def test_queries_of_low_rank_are_two_matrices() -> None:
    config = replace(BASE, num_nextn_predict_layers=0)
    low = replace(config, q_lora_rank=24)
    queries = 24 * HIDDEN + HEADS * (16 + 8) * 24
    assert counted(low) - counted(config) == 3 * (queries - HEADS * (16 + 8) * HIDDEN)


def test_a_module_for_the_token_after_next_is_a_layer_and_a_projection() -> None:
    """It joins state and embedding, both of the hidden size, before its own layer of experts."""
    config, with_mtp = (replace(BASE, num_nextn_predict_layers=number) for number in (0, 1))
    assert counted(with_mtp) - counted(config) == ATTENTION + 9 * EXPERT + HIDDEN * 2 * HIDDEN


def test_adamw_has_none() -> None:
    assert counted(BASE, "adamw") == 0
