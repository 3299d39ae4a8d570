"""How the layers of a model are cut among the ranks of a pipeline, as DualPipeV wants them (arXiv:2412.19437, 3.2.1).

With P ranks the layers are cut into 2P chunks, and rank r holds chunks r and 2P - 1 - r: a pack travels from rank 0 to
rank P - 1 through the first halves and back through the second ones. So rank 0 has both the embedding and the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Says which layers a rank holds: those of stage `rank` of a pipeline of `size`."""

    rank: int
    size: int

    def chunks(self, num_layers: int) -> tuple[range, range]:
        """Returns the layers that a pack meets on its way out and on its way back."""
        cuts = [chunk * num_layers // (2 * self.size) for chunk in range(2 * self.size + 1)]
        back = 2 * self.size - 1 - self.rank
        return range(cuts[self.rank], cuts[self.rank + 1]), range(cuts[back], cuts[back + 1])

    def holds(self, layer: int, num_layers: int) -> bool:
        """Says whether a layer is on this rank."""
        return any(layer in chunk for chunk in self.chunks(num_layers))

    def of(self, layer: int | None, num_layers: int) -> int:
        """Returns the stage that a layer is on; rank 0 has what is no layer, and those of multi-token prediction."""
        stages = [Stage(rank=rank, size=self.size) for rank in range(self.size)]
        return next((stage.rank for stage in stages if layer is not None and stage.holds(layer, num_layers)), 0)

    @property
    def first(self) -> bool:
        """Says whether the embedding, the final norm, the head and the modules for multi-token prediction are here."""
        return self.rank == 0


WHOLE = Stage(rank=0, size=1)
"""Every layer."""


class Elsewhere(nn.Module):
    """Stands for a layer that another rank of the pipeline holds."""

    def forward(self, *_args: Any) -> Any:
        """Raises RuntimeError: who comes here has taken part of a model for the whole."""
        raise RuntimeError("this layer is on another rank of the pipeline; run the model through its stages")


def elsewhere() -> Any:
    """Returns a layer that is not here, in the place of a module of any class."""
    return Elsewhere()
