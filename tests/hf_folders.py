"""Tiny checkpoints as a user would have them: made and saved by transformers, with a tokenizer beside the weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging

from rlkit.data.tokenizer import train_tokenizer

WINDOW = 6
"""Of Mistral's sliding attention: shorter than the sequences of the tests."""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """rlkit's own, on sums."""
    return train_tokenizer((f"{a} + {b} - {a} = {b}" for a in range(9) for b in range(9)), 272)


def make(kind: str, **changes: Any) -> PreTrainedModel:
    """A random model of two layers with heads of 32 numbers; Qwen2 has biases and a tied head, Mistral a window."""
    ids = {"eos_token_id": tokenizer().eos_token_id, "bos_token_id": tokenizer().bos_token_id}
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer()) + 3,  # published tables are often longer than their tokenizer
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "pad_token_id": tokenizer().pad_token_id,
        **ids,
    }
    latent = {
        "num_key_value_heads": 2, "moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
        "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    }  # fmt: skip
    torch.manual_seed(0)
    match kind:
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**sizes | {"tie_word_embeddings": True} | changes))
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**sizes | changes))
        case "mistral":
            model = MistralForCausalLM(MistralConfig(**sizes | {"head_dim": 32, "sliding_window": WINDOW} | changes))
        case "deepseek":
            model = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes | latent | changes))
        case _:
            raise AssertionError(kind)
    with torch.no_grad():  # transformers starts these at 0 and 1, where a mistake would not show
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "norm.weight")):
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Weights, config.json and tokenizer, as save_pretrained writes them."""
    logging.disable_progress_bar()  # tests read what is printed
    model.save_pretrained(folder)
    logging.enable_progress_bar()
    tokenizer().save_pretrained(folder)
    return folder
