"""What a parity gate found: an agreement, or an error that says where the two sides differ."""

from __future__ import annotations

from dataclasses import dataclass


class ParityError(RuntimeError):
    """Engine and trainer disagree; the message names the gap, the token and the first block, or the tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What a gate found that let the weights pass.

    Example: `Agreement(gap=2.4e-6, mean=5e-7, limit="limit 0.0001")`
    """

    gap: float
    """The largest |log p_engine - log p_trainer|, in nats, over the tokens that count."""
    mean: float
    """The mean over the same tokens."""
    limit: str
    """What they were held against, in words."""
    p99: float | None = None
    """99 of 100 tokens are no further apart; measured where FP8 is involved."""
    trained: float | None = None
    """The mean for the trainer as it trains, where it had to compute otherwise than that to be comparable."""
    bf16: float | None = None
    """What one more rounding to bf16 changes in this model on average, in nats: the gap that bf16 has."""
    flips: float | None = None
    """The share of tokens and layers for which engine and trainer choose different experts."""
    audited: int = 0
    """Tensors that engine and trainer hold byte for byte alike."""

    @property
    def numbers(self) -> dict[str, float]:
        """What a step records of it."""
        found = {
            "parity_p99": self.p99,
            "parity_trained": self.trained,
            "parity_bf16": self.bf16,
            "parity_flips": self.flips,
        }
        measured = {name: value for name, value in found.items() if value is not None}
        return {"parity": self.gap, "parity_mean": self.mean} | measured

    def __str__(self) -> str:
        words = f"engine and trainer agree within {self.gap:.1e} nats, {self.mean:.1e} on average ({self.limit})"
        if self.p99 is not None:
            words += f"; 99 % of tokens within {self.p99:.1e}"
        if self.trained is not None:
            words += (
                f"; warning: one of the two rounds activations to FP8 and the other does not; compared with the "
                f"activations of the engine; as the trainer trains, the two are {self.trained:.1e} apart on average, "
                "and the policy ratio is off by that much; trainer.dtype=fp8_weights computes what vLLM does on a CPU "
                "and with weights in bf16, trainer.dtype=fp8 what it does with engine.dtype=fp8 on a GPU"
            )
        if self.flips is not None:
            words += f"; {self.flips:.1%} of the choices of experts differ"
        if self.audited:
            words += f"; {self.audited} tensors alike byte for byte"
        return words
