"""A property over random configs: our logits and gradients, packed, are those of transformers' separate runs (fp32)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from rlkit.model import DeepseekV3
from rlkit.model.attention import SHORT
from rlkit.model.moe import Router
from tests.model.random_configs import SEEDS, random_config, random_samples
from tests.model.tiny import relative, seeded

TOLERANCE = 1e-5
CONFIGS = {seed: random_config(seed) for seed in SEEDS}
WITH_EXPERTS = [seed for seed, config in CONFIGS.items() if config.first_k_dense_replace < config.num_hidden_layers]


def twins(seed: int, dtype: torch.dtype, folder: Path) -> tuple[DeepseekV3, DeepseekV3ForCausalLM]:
    """The same weights in our class and, through our checkpoint, in theirs."""
    ours = seeded(CONFIGS[seed], seed)
    ours.save_checkpoint(folder, dtype="fp32" if dtype == torch.float32 else "bf16")
    theirs = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return ours.to(dtype), theirs


def loss(logits: list[Tensor], samples: list[Tensor]) -> Tensor:
    pairs = zip(logits, samples, strict=True)
    return torch.cat([F.cross_entropy(out[:-1], ids[1:], reduction="none") for out, ids in pairs]).mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_all_gradients_are_theirs(seed: int, tmp_path: Path) -> None:
    ours, theirs = twins(seed, torch.float32, tmp_path)
    samples = random_samples(seed, ours.config)
    lengths = [len(sample) for sample in samples]
    found = list(ours(torch.cat(samples), lengths).split(lengths))
    expected = [theirs(sample[None], use_cache=False).logits[0] for sample in samples]
    for length, out, wanted in zip(lengths, found, expected, strict=True):
        assert relative(out, wanted) <= TOLERANCE, (
            f"{ours.config}: logits of {length} tokens: {relative(out, wanted):.1e}"
        )
    loss(found, samples).backward()
    loss(expected, samples).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    # One expert with its weight divided by itself: the router's gradient is 0, and what there is of it is rounding.
    silent = ours.config.num_experts_per_tok == 1 and ours.config.norm_topk_prob
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        if silent and name.endswith("mlp.gate.weight"):
            assert max(parameter.grad.norm(), gradients[name].norm()) <= 1e-6 * whole, name
            continue
        gap = relative(parameter.grad, gradients[name])
        assert gap <= TOLERANCE, f"gradient of {name} {tuple(parameter.shape)}: {gap:.1e}, {ours.config}"


@pytest.mark.parametrize("seed", WITH_EXPERTS)
def test_bf16_routing_choices_are_theirs(seed: int, tmp_path: Path) -> None:
    """Both routers get the hidden states of their bf16 run: another rounding before them would change the question."""
    ours, theirs = twins(seed, torch.bfloat16, tmp_path)
    asked: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for name, module in theirs.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(
                lambda _, args, out, name=name: asked.update({name: (args[0].flatten(0, -2), out[1], out[2])})
            )
    with torch.no_grad():
        theirs(random_samples(seed, ours.config)[0][None], use_cache=False)
        routers = {name: module for name, module in ours.named_modules() if isinstance(module, Router)}
        assert asked.keys() == routers.keys()
        for name, (x_TD, their_weights_TK, theirs_TK) in asked.items():
            assert x_TD.dtype == routers[name].weight.dtype == torch.bfloat16
            routing = routers[name](x_TD)
            (experts_TK, order), (theirs_TK, their_order) = routing.experts_TK.sort(-1), theirs_TK.sort(-1)
            assert torch.equal(experts_TK, theirs_TK), f"{name}: {ours.config}"
            assert torch.equal(routing.weights_TK.gather(1, order), their_weights_TK.gather(1, their_order)), name


def test_the_draw_covers_every_switch() -> None:
    """Every kind of config and of length is there at least twice."""
    samples = {seed: [len(sample) for sample in random_samples(seed, config)] for seed, config in CONFIGS.items()}
    kinds = {
        "no low-rank queries": [config.q_lora_rank is None for config in CONFIGS.values()],
        "no YaRN": [config.rope_scaling is None for config in CONFIGS.values()],
        "groups left out": [config.topk_group < config.n_group for config in CONFIGS.values()],
        "two shared experts": [config.n_shared_experts == 2 for config in CONFIGS.values()],
        "all dense": [seed not in WITH_EXPERTS for seed in CONFIGS],
        "tied": [config.tie_word_embeddings for config in CONFIGS.values()],
        "not normalised": [not CONFIGS[seed].norm_topk_prob for seed in WITH_EXPERTS],
        "beyond the original context": [
            config.rope_scaling is not None
            and config.rope_scaling.factor > 1
            and max(samples[seed]) > config.rope_scaling.original_max_position_embeddings
            for seed, config in CONFIGS.items()
        ],
        "beyond the short path": [max(lengths) > SHORT for lengths in samples.values()],
    }
    assert not [kind for kind, found in kinds.items() if sum(found) < 2 or all(found)]
