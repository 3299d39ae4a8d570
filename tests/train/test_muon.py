"""Muon and AdamW in one step: against both written out in float64, and torch's own; and which of them trains what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlkit.algo import MtpTerm, SftLoss
from rlkit.config import TrainerConfig
from rlkit.model import DeepseekV3
from rlkit.model.base import CausalLM
from rlkit.model.hf import HfModel
from rlkit.model.matrices import matrix_shapes, unknown_stacks
from rlkit.train.steppers import muon
from rlkit.train.steppers.muon import MuonAdamW, Piece
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from tests.hf_folders import make, save
from tests.model.tiny import relative, seeded
from tests.train.test_trainer import ARCHITECTURE, CFG, demonstrations

LR, DECAY, CLIP, STEPS = 1e-2, 0.1, 0.5, 4
MUON = replace(CFG, optimizer="muon", weight_decay=DECAY, grad_clip=CLIP)
DEEP = replace(ARCHITECTURE, num_nextn_predict_layers=1)
SFT = MtpTerm(weight=0.3, detached=False)
ADAMWS = ("embed_tokens", "lm_head", "norm", "mlp.gate.weight", "layernorm")


def trainer(cfg: TrainerConfig = MUON) -> ModelTrainer:
    model = seeded(DEEP)
    return ModelTrainer(model, TorchStepper(model, cfg), reference=None)


def published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stacks of experts as the matrices of a checkpoint, in float64."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for expert, one in enumerate(tensor) if tensor.ndim == 3 else ():
            parts = one.chunk(2) if "gate_up" in name else (one,)
            found |= {f"{name}.{expert}.{i}": part.double().clone() for i, part in enumerate(parts)}
        if tensor.ndim < 3:
            found[name] = tensor.double().clone()
    return found


class WrittenOut:
    """The posts' equations, one tensor after the other, in float64; the momentum as a plain sum M <- mu M + G."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w, self.steps = weights, 0
        self.m = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        self.v = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}

    def step(self, grads: dict[str, Tensor]) -> None:
        self.steps += 1
        norm = torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()
        for name, grad in grads.items():
            g, w, m = grad * min(1.0, CLIP / float(norm)), self.w[name], self.m[name]
            if any(words in name for words in ADAMWS):
                m.copy_(0.9 * m + 0.1 * g)
                self.v[name].copy_(0.95 * self.v[name] + 0.05 * g * g)
                first, second = m / (1 - 0.9**self.steps), self.v[name] / (1 - 0.95**self.steps)
                decayed = w.ndim > 1 and "embed" not in name
                w.copy_(w - LR * (first / (second.sqrt() + 1e-8) + DECAY * decayed * w))
            else:
                m.copy_(0.95 * m + g)
                u, s, v = torch.linalg.svd(g + 0.95 * m, full_matrices=False)
                s = s / s.norm().clamp(min=1e-7)  # an expert may have had no token yet
                for _ in range(5):
                    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
                w.copy_(w - LR * (0.2 * max(w.shape) ** 0.5 * (u * s) @ v + DECAY * w))


def test_steps_are_those_of_the_equations() -> None:
    """Weights, and the norm of the true gradient: of all parameters, experts included, and before anything else."""
    ours = trainer()
    named = dict(ours.model.named_parameters())
    theirs, grads = WrittenOut(published(named)), dict[str, Tensor]()

    def noted(name: str) -> Callable[[Tensor], None]:
        return lambda grad: grads.__setitem__(name, grads.get(name, 0) + grad)

    for name, parameter in named.items():
        parameter.register_hook(noted(name))
    for step in range(STEPS):
        grads.clear()
        numbers = ours.update(demonstrations(step), SftLoss(), LR, SFT)
        norm = torch.cat([grad.double().flatten() for grad in grads.values()]).norm()
        assert numbers["grad_norm"] == pytest.approx(float(norm), rel=1e-5) and float(norm) > CLIP
        theirs.step(published(grads))
    for name, tensor in published(named).items():
        assert relative(tensor, theirs.w[name]) <= 1e-5, name


def test_a_stack_steps_as_torch_steps_its_matrices() -> None:
    """`torch.optim.Muon` with Moonlight's scale takes single matrices and works in bf16: ours in fp32 is as far from it
    as bf16 is from float64, and ours in bf16 no further from fp32 than that."""
    start = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0))
    grads = [torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(step)) for step in range(1, STEPS)]
    alone = [nn.Parameter(one.clone()) for one in start]
    theirs = torch.optim.Muon(alone, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for grad in grads:
        for one, part in zip(alone, grad, strict=True):
            one.grad = part.clone()
        theirs.step()
    torchs = torch.stack([one.detach() for one in alone]) - start
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        stack = nn.Parameter(start.clone())
        ours = MuonAdamW([{"params": [stack], "weight_decay": DECAY, "muon": True}], beta2=0.95, dtype=dtype)
        ours.pieces[stack] = [Piece(matrices=tuple((i * 60, (6, 10)) for i in range(3)), size=180)]
        ours.param_groups[0]["lr"] = LR
        for grad in grads:
            stack.grad = grad.clone()
            ours.step()
        moved[dtype] = stack.detach() - start
    bf16 = relative(torchs, moved[torch.float32])
    assert 0 < bf16 < 5 * 2**-8 * 5, "five rounds, each with a few roundings of 2^-8"
    assert relative(moved[torch.bfloat16], moved[torch.float32]) < 2 * bf16


def test_a_lower_loss_comes_of_it() -> None:
    ours = trainer()
    losses = [ours.update(demonstrations(), SftLoss(), 3e-3)["loss"] for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]


def from_transformers(kind: str) -> Callable[[Path], CausalLM]:
    return lambda folder: HfModel.from_checkpoint(save(make(kind), folder))


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_of_hidden_layers_are_muons(tied: bool) -> None:
    model = DeepseekV3(replace(DEEP, tie_word_embeddings=tied))
    shapes = matrix_shapes(model)
    names = {name for name, parameter in model.named_parameters() if parameter in shapes}
    others = {name for name, _ in model.named_parameters()} - names
    assert all(any(words in name for words in (*ADAMWS, "hnorm", "enorm")) for name in others)
    assert not any(any(words in name for words in ADAMWS) for name in names)
    assert {"model.layers.3.eh_proj.weight", "model.layers.0.mlp.down_proj.weight"} <= names
    experts = model.get_parameter("model.layers.1.mlp.experts.gate_up_proj")
    assert experts.shape == (8, 32, 32) and shapes[experts] == (16, 32), "gate and up are two matrices"
    assert shapes[model.get_parameter("model.layers.1.mlp.experts.down_proj")] == (32, 16)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_models_of_transformers_too(kind: str, tmp_path: Path) -> None:
    model = from_transformers(kind)(tmp_path)
    shapes = matrix_shapes(model)
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or "embed_tokens" in name or "lm_head" in name
        assert (parameter in shapes) != spared, name
    assert unknown_stacks(model) == []
    each = ModelTrainer(model, TorchStepper(model, MUON), reference=None)
    assert each.update(demonstrations(), SftLoss(), LR)["skipped"] == 0


def test_stacks_of_unknown_make_are_named(tmp_path: Path) -> None:
    names = unknown_stacks(from_transformers("deepseek")(tmp_path))
    assert names and all("experts" in name for name in names)


@pytest.mark.parametrize("size", [1, 7, 60, 61, 100, 180])
def test_pieces_of_ranks_make_up_every_matrix_once(size: int) -> None:
    places = tuple((i * 60, (6, 10)) for i in range(3))
    ranks = [Piece(matrices=places, size=size, place=5, rank=rank) for rank in range(-(-180 // size))]
    for first, shape in places:
        parts = [piece.ours(first, shape) for piece in ranks]
        covered = [number for _, inside in parts for number in range(inside.start, inside.stop)]
        assert covered == list(range(60))
        holders = [here for here, inside in parts if here.start < here.stop]
        assert (len(holders) > 1) == ranks[0].cuts(first, shape)
        for (here, inside), piece in zip(parts, ranks, strict=True):
            assert here.stop - here.start == inside.stop - inside.start
            if here.start < here.stop:
                assert here.start - 5 + piece.rank * size == first + inside.start
                assert here.start >= 5 and here.stop <= 5 + size


def test_cut_matrices_are_put_together_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "SHARED_NUMBERS", 100)
    matrices = [(0, (6, 10)), (60, (4, 10)), (100, (20, 10)), (300, (1, 10))]
    assert list(muon._batches(matrices)) == [matrices[:2], matrices[2:3], matrices[3:]]
    assert list(muon._batches([])) == []
