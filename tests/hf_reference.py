"""A reference that is not ours: transformers' DeepSeek-V3, random weights, with the tracing that parity asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

BOS, EOS, PAD, THINK, ANSWER = range(5)
VOCAB = 96


def make_model(*, hidden: int = 64, layers: int = 3, seed: int = 0) -> DeepseekV3ForCausalLM:
    """A tiny DeepSeek-V3: one dense layer, then 8 experts in 2 groups, of which 1 group and 2 experts are chosen."""
    config = DeepseekV3Config(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=2 * hidden, moe_intermediate_size=hidden // 2,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=32,
        qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, n_routed_experts=8, n_shared_experts=1,
        num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, max_position_embeddings=256,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, tie_word_embeddings=False, initializer_range=0.1,
        topk_method="noaux_tc", scoring_func="sigmoid", num_nextn_predict_layers=0, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = DeepseekV3ForCausalLM(config).eval()
    randomise(model, seed)
    return model


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Draw every weight anew, the router's bias and the norms too, which transformers starts at 0 and 1."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        draw = torch.randn(tensor.shape, generator=random)
        tensor.copy_(1 + 0.1 * draw if "norm" in name else 0.15 * draw)


def save_checkpoint(model: DeepseekV3ForCausalLM, folder: Path) -> None:
    """config.json, weights, and a tokenizer in which the tags are ordinary added tokens and bos/eos/pad are special."""
    model.save_pretrained(folder)
    names = ["<bos>", "<eos>", "<pad>", "<think>", "<answer>", *(f"w{i}" for i in range(5, VOCAB))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    tokenizer.add_special_tokens(names[:3])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in names[3:5]])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == EOS


class HfTrainer:
    """The side of a Trainer that parity and weight sync see, on the transformers model."""

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        self.model = model

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]], temperature: float = 1.0) -> list[list[float]]:
        """log p(token_t | tokens before t), one sequence at a time, so without padding."""
        rows = []
        for tokens in sequences:
            ids_1T = torch.tensor([list(tokens)])
            logprobs_TV = (self.model(ids_1T).logits[0].float() / temperature).log_softmax(-1)
            rows.append(logprobs_TV[:-1].gather(1, ids_1T[0, 1:, None])[:, 0].tolist())
        return rows

    @torch.no_grad()
    def trace(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        """Outputs of attention, MLP and the last norm, through forward hooks."""
        outputs: dict[str, Tensor] = {}
        names = [f"model.layers.{i}.{b}" for i in range(len(self.model.model.layers)) for b in ("self_attn", "mlp")]
        handles = []
        for name in [*names, "model.norm"]:

            def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor], name: str = name) -> None:
                outputs[name] = (output[0] if isinstance(output, tuple) else output)[0]

            handles.append(self.model.get_submodule(name).register_forward_hook(keep))
        self.model(torch.tensor([list(tokens)]))
        for handle in handles:
            handle.remove()
        return outputs

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Checkpoint names: transformers holds the experts of a layer as one tensor, checkpoints one by one."""
        for name, tensor in self.model.state_dict().items():
            if name.endswith("experts.gate_up_proj"):
                for i, gate_up in enumerate(tensor):
                    for part, half in zip(("gate_proj", "up_proj"), gate_up.chunk(2), strict=True):
                        yield name.replace("gate_up_proj", f"{i}.{part}.weight"), half
            elif name.endswith("experts.down_proj"):
                for i, down in enumerate(tensor):
                    yield name.replace("down_proj", f"{i}.down_proj.weight"), down
            else:
                yield name, tensor
