"""Multi-token prediction that is not ours: transformers' model and decoder layers in float64, put together by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config as TheirConfig
from transformers import DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

from rlkit.model import DeepseekV3


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


class Reference(nn.Module):
    """Takes the weights of one of ours; one sample at a time, so nothing can leak from one to another."""

    def __init__(self, model: DeepseekV3) -> None:
        super().__init__()
        self.config = model.config
        theirs = TheirConfig(**model.config.to_hf(), attn_implementation="eager", experts_implementation="eager")
        first = model.config.num_hidden_layers
        self.main = DeepseekV3ForCausalLM(theirs)
        depths = range(model.config.num_nextn_predict_layers)
        self.blocks = nn.ModuleList(DeepseekV3DecoderLayer(theirs, first + i) for i in depths)
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.extra = nn.ParameterDict()
        for i, block in enumerate(self.blocks):
            prefix = f"model.layers.{first + i}."
            own = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
            for name in ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"):
                self.extra[f"{i} {name}".replace(".", "_")] = own.pop(name)
            block.load_state_dict(own)
        self.main.load_state_dict(state)
        self.double()

    def extra_of(self, depth: int, name: str) -> Tensor:
        return self.extra[f"{depth - 1} {name}.weight".replace(".", "_")]

    def hidden(self, tokens: Sequence[int]) -> list[Tensor]:
        """h^0, h^1, ... of one sample, after the final norm of the main model or the module; h^k has k rows fewer."""
        ids, eps = torch.tensor(tokens), self.config.rms_norm_eps
        found = [self.main.model(ids.unsqueeze(0)).last_hidden_state[0]]
        for depth, block in enumerate(self.blocks, start=1):
            size = len(tokens) - depth
            if size < 1:
                break
            embedded = rms_norm(self.main.model.embed_tokens(ids[depth:]), self.extra_of(depth, "enorm"), eps)
            previous = rms_norm(found[-1][:size], self.extra_of(depth, "hnorm"), eps)
            x = torch.cat([embedded, previous], dim=-1) @ self.extra_of(depth, "eh_proj").t()
            positions = torch.arange(size).unsqueeze(0)
            angles = self.main.model.rotary_emb(x.unsqueeze(0), positions)
            mask = torch.full((1, 1, size, size), float("-inf"), dtype=torch.float64).triu(1)
            x = block(x.unsqueeze(0), attention_mask=mask, position_ids=positions, position_embeddings=angles)[0]
            found.append(rms_norm(x, self.extra_of(depth, "shared_head.norm"), eps))
        return found

    def loss(self, tokens: Sequence[int], weights: Sequence[float], mtp_weight: float, temperature: float) -> Tensor:
        """L + lambda / D sum_k L^k of one sample, both summed token by token with the weights of its tokens."""
        total = torch.zeros((), dtype=torch.float64)
        for depth, hidden in enumerate(self.hidden(tokens)):
            logits = self.main.lm_head(hidden) / (1.0 if depth else temperature)
            share = mtp_weight / len(self.blocks) if depth else 1.0
            for t in range(depth + 1, len(tokens)):
                total = total - share * weights[t] * logits[t - depth - 1].log_softmax(-1)[tokens[t]]
        return total
