"""An engine in FP8 that no trainer vouches for is held against the files that it loaded, before it samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from rlkit.assemble import engine
from rlkit.cluster import start
from rlkit.config import GrpoRun, RunConfig
from rlkit.config.compose import load_config
from rlkit.engine.examination import Examination, Product
from rlkit.model.files.folder import SCALE
from rlkit.parity import ParityError, check_served, gate_sequences
from rlkit.train.trainer import ModelTrainer
from tests.model.float8 import TILED
from tests.model.tiny import seeded
from tests.train.test_rounding import learner

CONFIG = replace(TILED, num_hidden_layers=2)
SEQUENCES = gate_sequences(CONFIG.vocab_size, 2, 20, seed=0, prompts=())
EXPERT = f"model.layers.1.mlp.experts.2.down_proj.weight{SCALE}"


@dataclass
class Sampler:
    """What an engine shows that has loaded some weights."""

    seen: Examination
    asked: int = 0

    def replicas(self) -> Sequence[Sampler]:
        return (self,)

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        self.asked = len(sequences)
        return self.seen


@pytest.fixture(scope="module")
def trainer() -> ModelTrainer:
    return learner(seeded(CONFIG).bfloat16())


@pytest.fixture
def checkpoint(trainer: ModelTrainer, tmp_path: Path) -> Path:
    trainer.model.save_checkpoint(tmp_path / "model", dtype="bf16")
    return tmp_path / "model"


def loaded(trainer: ModelTrainer, **changes: Any) -> Sampler:
    prints = dict(trainer.fingerprints("fp8_weights"))
    seen = Examination(prints=prints, unused=frozenset(), products={}, chosen={}, quantises_activations=False)
    return Sampler(replace(seen, **changes))


def test_files_against_an_engine(trainer: ModelTrainer, tmp_path: Path) -> None:
    trainer.model.save_checkpoint(tmp_path, dtype="fp8_weights")
    honest = loaded(trainer)
    assert check_served(honest, tmp_path, SEQUENCES) == len(honest.seen.prints)
    wrong = {**honest.seen.prints, EXPERT: "float32 [1, 1] 0"}
    with pytest.raises(ParityError, match=rf"weights of {tmp_path}: {EXPERT} is float32 \[1, 1\] 0 in the engine"):
        check_served(loaded(trainer, prints=wrong), tmp_path, SEQUENCES)
    product = Product(equal=0.1, error=0.02)
    with pytest.raises(ParityError, match="layer: the engine's output is not the product"):
        check_served(loaded(trainer, products={"layer": product}), tmp_path, SEQUENCES)
    with pytest.raises(ParityError, match="layer: the engine made no product"):
        check_served(loaded(trainer, unseen=("layer",)), tmp_path, SEQUENCES)


def run_config(cls: type[RunConfig], folder: Path) -> RunConfig:
    words = ["engine.dtype=fp8", "trainer.dtype=fp8_weights", f"output_dir={folder}"]
    cfg = load_config("grpo", GrpoRun, words)
    return cls(**{field.name: getattr(cfg, field.name) for field in fields(cls)})


@pytest.mark.parametrize("cls", [RunConfig, GrpoRun])
def test_a_run_that_only_samples_asks_before_it_begins(
    cls: type[RunConfig], trainer: ModelTrainer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that trains asks when it has a trainer, whose weights replace these."""
    sampler = loaded(trainer)

    @contextmanager
    def given(*_: object) -> Iterator[Sampler]:
        yield sampler

    monkeypatch.setattr(start, "on_ray", given)
    monkeypatch.setattr(start, "engines_on_ray", given)
    with engine(run_config(cls, tmp_path), checkpoint):
        assert sampler.asked == (8 if cls is RunConfig else 0)
    sampler = loaded(trainer, prints={**sampler.seen.prints, EXPERT: "float32 [1, 1] 0"})
    if cls is RunConfig:
        with (
            pytest.raises(ParityError, match=f"initial_fp8: {EXPERT} is float32"),
            engine(run_config(cls, tmp_path), checkpoint),
        ):
            pass
