"""FP8 with Muon, over stages, and asked as engines without FP8 activations compute: steps on 1, 2 and 4 ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rlkit.config import TrainerConfig
from tests.model.float8 import TILED
from tests.model.tiny import seeded
from tests.train.ranks import run_ranks
from tests.train.test_trainer import CFG

pytestmark = pytest.mark.slow


class Layout(NamedTuple):
    """One way to take the same step."""

    dtype: str
    expert_parallel: int = 1
    fp8_dispatch: bool = False
    zero_stage: int = 1
    recompute: bool = False
    optimizer: str = "adamw"
    pipeline: int = 1
    layers: int = 3

    def cfg(self, num_ranks: int) -> TrainerConfig:
        """No clipping and no decay, so that the first moments are known shares of the gradient."""
        words = {key: value for key, value in self._asdict().items() if key != "layers"}
        return replace(CFG, kind="deepspeed", num_ranks=num_ranks, grad_clip=1e9, weight_decay=0.0, **words)

    @property
    def ranks(self) -> int:
        """On how many it shares the work."""
        return 4 if self.pipeline > 1 else 2

    def runs_on(self, world_size: int) -> bool:
        """What is there for comparison runs alone, a pipeline on its ranks, all else on two."""
        if self.pipeline > 1 or self.expert_parallel > 1:
            return world_size == self.ranks
        return world_size == 1 or (world_size == 2 and self.layers == 3)

    @property
    def alone(self) -> Layout:
        """The same on one rank."""
        return Layout(self.dtype, optimizer=self.optimizer, layers=self.layers)


STAGES = [Layout("fp8", 2, fp8_dispatch=on, pipeline=2, layers=4) for on in (False, True)]
LAYOUTS = [
    *(Layout(dtype) for dtype in ("bf16", "fp8", "fp8_weights")),
    *(Layout(dtype, layers=4) for dtype in ("bf16", "fp8")),
    *(Layout(dtype, optimizer="muon") for dtype in ("fp8", "fp8_weights")),
    *(Layout(dtype, 2, optimizer="muon") for dtype in ("fp8", "fp8_weights")),
    *STAGES,
    *(Layout(dtype, 2) for dtype in ("fp8", "fp8_weights")),
    Layout("fp8", 2, fp8_dispatch=True),
]
Found = dict[int, dict[Layout, dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What rank 0 saw, by number of ranks."""
    folder = tmp_path_factory.mktemp("float8")
    for layers in (3, 4):
        seeded(replace(TILED, num_hidden_layers=layers)).save_checkpoint(folder / str(layers), dtype="fp32")
    numbers = (1, 2, 4)
    found, _ = run_ranks("one_float8_rank", folder, *(("steps", number) for number in numbers))
    return dict(zip(numbers, found, strict=True))


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Between two gradients, relative to the second, over all parameters together."""
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([found[name].flatten().double() for name in theirs]) for found in (ours, theirs))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "layout",
    [each for each in LAYOUTS if each in STAGES or (each.optimizer == "muon" and each.expert_parallel > 1)],
    ids=str,
)
def test_sharing_the_work_changes_less_than_fp8_does(layout: Layout, seen: Found) -> None:
    """Tiles along the tokens depend on which tokens share a rank, so that gradients are equal up to FP8's rounding."""
    shared, alone, plain = (
        seen[layout.ranks][layout],
        seen[1][layout.alone],
        seen[1][Layout("bf16", layers=layout.layers)],
    )
    rounding, found = distance(alone["gradient"], plain["gradient"]), distance(shared["gradient"], alone["gradient"])
    print(f"{layout}: gradient {found:.1e} from one rank's, which is {rounding:.1e} from bf16's")
    assert 0 < rounding < 0.5 and found < rounding
    off = abs(shared["numbers"]["loss"] - alone["numbers"]["loss"])
    assert off <= 5e-3 * alone["numbers"]["loss"]


@pytest.mark.parametrize("dtype", ["fp8", "fp8_weights"])
def test_muon_takes_its_own_steps_from_gradients_in_fp8(dtype: str, seen: Found) -> None:
    """Entries of a matrix move by about 0.2 lr in the mean, where AdamW's first step moves each by lr."""
    for world_size, expert_parallel in ((1, 1), (2, 2)):
        moved = seen[world_size][Layout(dtype, expert_parallel, optimizer="muon")]["moved"]
        adamw = seen[world_size][Layout(dtype, expert_parallel)]["moved"]
        orthogonal = {name for name, mean in moved.items() if mean < 0.35}
        assert all(moved[name] > 0.1 for name in orthogonal)
        assert all(mean > 0.5 for name, mean in moved.items() if name not in orthogonal)
        assert all(mean > 0.5 for mean in adamw.values())
        names = {"self_attn.kv_b_proj.weight", "self_attn.o_proj.weight", "mlp.experts.gate_up_proj"}
        assert {f"model.layers.2.{name}" for name in names} <= orthogonal
        assert not orthogonal & {"lm_head.weight", "model.embed_tokens.weight", "model.layers.2.mlp.gate.weight"}


def test_engines_without_fp8_activations_are_asked_alike_however_rows_travel(seen: Found) -> None:
    """`Rounding.other_activations` reaches the rows on their way to other ranks' experts, and every stage."""
    plain, travelling = (seen[2][Layout("fp8", 2, fp8_dispatch=on)] for on in (False, True))
    assert plain["otherwise"] == travelling["otherwise"] != plain["logprobs"] != travelling["logprobs"]
    first, second = (seen[4][layout] for layout in STAGES)
    assert first["otherwise"] == second["otherwise"] != first["logprobs"] != second["logprobs"]
    for found, alone in ((plain, seen[1][Layout("fp8")]), (first, seen[1][Layout("fp8", layers=4)])):
        pairs = zip(found["otherwise"], alone["otherwise"], strict=True)
        assert max(abs(a - b) for rows in pairs for a, b in zip(*rows, strict=True)) < 0.1
