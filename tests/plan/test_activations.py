"""Predicted activations against what autograd keeps of the real model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.plan.activations import LOGIT_COPIES, activation_bytes, block_numbers, logit_bytes
from rlkit.plan.layout import Layout
from rlkit.train.policy import Policy
from rlkit.types import Pack

CONFIG = DeepseekV3Config(
    vocab_size=64,
    hidden_size=160,
    intermediate_size=416,
    moe_intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    n_routed_experts=8,
    n_shared_experts=2,
    num_experts_per_tok=3,
    n_group=2,
    topk_group=2,
    first_k_dense_replace=1,
    q_lora_rank=48,
    kv_lora_rank=72,
    qk_nope_head_dim=40,
    qk_rope_head_dim=24,
    v_head_dim=32,
    max_position_embeddings=1024,
)
"""Every width is another one, so that no term can stand for another."""


def kept(config: DeepseekV3Config, samples: int, length: int, dtype: torch.dtype) -> int:
    """Bytes that a forward pass keeps beside the parameters, each storage once."""
    torch.manual_seed(0)
    model = DeepseekV3(config).to(dtype)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that goes would give its place to another one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    weights_NL = torch.full((samples, length), 1 / (samples * length))
    weights_NL[:, :-1] = 0  # one trained token a sample: logits hardly count
    tokens_T = torch.randint(64, (samples * length,))
    batch = Pack(tokens_T=tokens_T, lengths=(length,) * samples, weights_T=weights_NL.flatten())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = Policy(model)(batch, 1.0)
    assert output.logprobs_T.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize(("samples", "length"), [(16, 32), (2, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("q_lora_rank", [48, None])
def test_what_autograd_keeps(samples: int, length: int, dtype: torch.dtype, q_lora_rank: int | None) -> None:
    config = replace(CONFIG, q_lora_rank=q_lora_rank)
    width = torch.empty((), dtype=dtype).element_size()
    found = kept(config, samples, length, dtype)
    predicted = activation_bytes(
        config,
        Layout(ranks=1, recompute=False),
        range(config.num_hidden_layers),
        tokens=samples * length,
        sample=length,
        width=width,
        on_cpu=True,
    )
    # The rest is small: positions, choices of experts, the router's scores.
    assert abs(predicted / found - 1) < 0.03


def test_a_block_of_deepseek_v3_by_hand() -> None:
    """At 4,096 tokens on a GPU; D 7168, Q 1536, C 512, R 64, H 128, d_k 192, d_v 128, K 8, I 2048 or 18432."""
    attention = 2 * 7168 + 2 * 1536 + 2 * 512 + 64 + 128 * (4 * 192 + 128)
    config = DeepseekV3Config()
    experts = attention + 2 * 7168 + 8 * (7168 + 3 * 2048) + 4 * 2048 + 2 * 7168  # the router's input in fp32
    assert block_numbers(config, dense=False, sample=4096, width=2, on_cpu=False) == experts
    assert block_numbers(config, dense=True, sample=4096, width=2, on_cpu=False) == attention + 2 * 7168 + 4 * 18432


def test_recomputation_keeps_inputs_and_one_block() -> None:
    layers, config = range(61), DeepseekV3Config()
    whole, again = (
        activation_bytes(
            config, Layout(ranks=1, recompute=recompute), layers, tokens=10, sample=4096, width=2, on_cpu=False
        )
        for recompute in (False, True)
    )
    dense = block_numbers(config, dense=True, sample=4096, width=2, on_cpu=False)
    experts = block_numbers(config, dense=False, sample=4096, width=2, on_cpu=False)
    assert whole == 20 * (3 * dense + 58 * experts + 2 * 7168)
    assert again == 20 * (61 * 7168 + max(dense, experts) + 2 * 7168)


def test_a_pipeline_keeps_one_piece_more_than_the_model_has() -> None:
    """DualPipeV of P stages: 2 P + 1 pieces of 2 P, so a stage with 2 of 8 pieces holds 9 halves of its layers."""
    config, layers = DeepseekV3Config(), (10, 50)
    piped = Layout(ranks=4, pipeline_stages=4, recompute=False)
    found = activation_bytes(config, piped, layers, tokens=10, sample=4096, width=2, on_cpu=False)
    experts = block_numbers(config, dense=False, sample=4096, width=2, on_cpu=False)
    assert found == 20 * (9 * experts + 2 * 7168)


def test_logits_are_those_of_a_chunk() -> None:
    """2^24 logits at once (`rlkit.algo.logprobs`): 129 rows of 129,280; a small pack has all of its rows at once."""
    assert logit_bytes(129280, 4096) == LOGIT_COPIES * 4 * 129 * 129280
    assert logit_bytes(320, 512) == LOGIT_COPIES * 4 * 512 * 320
