"""A reward model: DeepSeek-V3 whose head gives a sample one number in the place of logits.

    score = w . h,  h [D] the hidden state of the sample's last token after the final norm

The weights have the names of transformers' classes for sequence classification, which load them. There are no modules
for multi-token prediction: they predict tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from rlkit.errors import UserError
from rlkit.model.config import DeepseekV3Config, ScorerConfig
from rlkit.model.deepseek import DeepseekV3
from rlkit.model.experts import ALL, ExpertShare
from rlkit.model.files.folder import Checkpoint, write_checkpoint
from rlkit.model.files.names import EMBEDDING, SCORE, published_names
from rlkit.model.stages import WHOLE, Stage


class DeepseekScorer(DeepseekV3):
    """Scores samples; `score` is its head."""

    config_class = ScorerConfig

    def __init__(self, config: DeepseekV3Config, share: ExpertShare = ALL, stage: Stage = WHOLE) -> None:
        super().__init__(config, share, stage)
        del self.lm_head
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        nn.init.normal_(self.score.weight, std=head_std(config))

    def _tie(self) -> None:
        """Ties nothing: the head is no embedding."""

    def head(self) -> nn.Linear:
        """Returns the layer that scores."""
        return self.score

    def new_layers(self) -> Sequence[nn.Module]:
        """Returns the same: no checkpoint of a language model has it."""
        return (self.score,)

    def forward(self, tokens: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Computes the score of each sample in fp32: [T] -> [N], or [B, T] -> [B] for B samples of one length."""
        if tokens.dim() == 2:
            lengths = (tokens.shape[1],) * tokens.shape[0]
        return self.scores(self.hidden(tokens.flatten(), lengths), lengths or (tokens.numel(),))

    def scores(self, hidden_TD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Computes the scores from hidden states, [T, D] -> [N]."""
        ends_N = torch.tensor(lengths, device=hidden_TD.device).cumsum(0) - 1
        return (hidden_TD[ends_N].float() @ self.score.weight.float().T).squeeze(-1)


def deepseek_class(config: DeepseekV3Config) -> type[DeepseekV3]:
    """Returns our class of a model with this config: the reward model's or the language model's."""
    return DeepseekScorer if isinstance(config, ScorerConfig) else DeepseekV3


def head_std(config: DeepseekV3Config) -> float:
    """Returns the spread of a new head: 1 / sqrt(D + 1) (arXiv:2009.01325, appendix B.1)."""
    return 1 / math.sqrt(config.hidden_size + 1)


def write_scorer(source: Path, target: Path, seed: int) -> None:
    """Makes a checkpoint of a reward model from that of a language model, with a new head drawn from `seed`.

    The head for tokens and modules for multi-token prediction are left out; a tensor at a time is in memory. UserError
    if the source is no checkpoint of ours, or a reward model already.
    """
    checkpoint = Checkpoint.open(source)
    if isinstance(checkpoint.config, ScorerConfig):
        raise UserError(f"{source} is a reward model already; give the checkpoint of a language model")
    config = scorer_config(checkpoint.config)
    table = published_names(config)
    generator = torch.Generator().manual_seed(seed)
    head_1D = torch.randn(table[SCORE].shape, generator=generator) * head_std(config)

    def weights() -> Iterator[tuple[str, Tensor]]:
        yield from ((name, checkpoint.weight(name)) for name in table if name != SCORE)
        yield SCORE, head_1D

    dtype = "fp32" if checkpoint.weights[EMBEDDING].dtype == "F32" else "bf16"
    write_checkpoint(target, weights(), table, config.to_hf(), dtype)


def scorer_config(config: DeepseekV3Config) -> ScorerConfig:
    """Returns the config of a reward model with the body of this model."""
    sizes = {field.name: getattr(config, field.name) for field in fields(config)}
    return ScorerConfig(**sizes | {"num_nextn_predict_layers": 0, "tie_word_embeddings": False})
