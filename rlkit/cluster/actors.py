"""What runs inside Ray actors: thin shells around an engine and a trainer rank, without logic of their own."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from torch import Tensor, distributed

from rewards.model_score import Asked
from rlkit.algo.losses import Loss, MtpTerm
from rlkit.build import build_engine, build_trainer, cores_per
from rlkit.cluster.transfer import Publication, publish
from rlkit.config import EngineConfig, LoraConfig, TrainerConfig
from rlkit.engine.examination import Examination
from rlkit.model.files.sent import ADAPTER, form_names
from rlkit.scoring.models import RewardModel
from rlkit.train.rounding import Rounding
from rlkit.types import Batch, Group, Numbers, Prompt, Sampling, Weights


@contextmanager
def _loading() -> Iterator[None]:
    """Loads what lives as long as this process: garbage is not looked for meanwhile, nor later among what stays.

    A million objects of vLLM's libraries: to go through them takes 0.4 s each time, a fifth of the start in all.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class EngineActor:
    """One engine in a process of its own; needs a second thread, which answers `finished` while the first samples."""

    def __init__(self, cfg: EngineConfig, checkpoint: Path, kind: str, lora: LoraConfig | None) -> None:
        with _loading():
            self.engine = build_engine(cfg, checkpoint, kind, lora)

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        """`Engine.generate`, one group at a time: Ray sends each on its way as soon as it is yielded."""
        # Ray sends into this generator, and what the engine gives may have no `send`.
        yield from (group for group in self.engine.generate(prompts, n, sampling))

    def finished(self) -> int:
        """Rollouts that the running `generate` has finished."""
        return self.engine.finished()

    def drafts(self) -> tuple[int, int]:
        """`Engine.drafts`."""
        return self.engine.drafts()

    def load(self, weights: Weights, version: int) -> None:
        """`Engine.load`."""
        self.engine.load(weights, version)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """`Engine.logprobs`."""
        return self.engine.logprobs(sequences)

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """`Engine.trace`."""
        return self.engine.trace(tokens)

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        """`Engine.examine`."""
        return self.engine.examine(sequences)

    def close(self) -> None:
        """Ends what the engine has started, where it has started anything."""
        close = getattr(self.engine, "close", None)
        if close is not None:
            close()


class TrainerActor:
    """One data-parallel rank of the trainer."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def host_store(self, world_size: int) -> tuple[str, int]:
        """Opens the store where the ranks meet, on a free port of this machine; rank 0 does it."""
        host = ray.util.get_node_ip_address()
        self.store: distributed.Store = distributed.TCPStore(host, 0, world_size, True, wait_for_workers=False)
        return host, self.store.port

    def start(
        self,
        cfg: TrainerConfig,
        checkpoint: Path,
        kind: str,
        keep_reference: bool,
        seed: int,
        store: tuple[str, int],
    ) -> None:
        """Joins the other ranks and loads the model."""
        self.num_ranks = cfg.num_ranks
        if self.rank:
            self.store = distributed.TCPStore(*store, cfg.num_ranks, False)
        rank = {"store": self.store, "rank": self.rank}
        with _loading():
            self.trainer = build_trainer(cfg, checkpoint, kind, keep_reference=keep_reference, seed=seed, **rank)

    def update(self, batch: Batch, loss: Loss, lr: float, mtp: MtpTerm) -> Numbers:
        """`Trainer.update` on this rank's share."""
        return self.trainer.update(batch, loss, lr, mtp)

    def logprobs(self, sequences: Sequence[Sequence[int]], rounding: Rounding | None) -> list[list[float]]:
        """`Trainer.logprobs`."""
        return self.trainer.logprobs(sequences, rounding)

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """`Trainer.scores`."""
        return self.trainer.scores(sequences)

    def trace(self, tokens: Sequence[int], rounding: Rounding | None) -> Mapping[str, Tensor]:
        """`Trainer.trace`."""
        return self.trainer.trace(tokens, rounding)

    def publish(self, version: int, form: str) -> Publication:
        """Puts this rank's share of the weights into the object store, bucket by bucket; all ranks call it."""
        if form == ADAPTER:  # small, and whole on every rank
            table = tuple(self.trainer.adapter())
            share = table if self.rank == 0 else ()
        else:
            fp8 = self.trainer.model.fp8_names()
            table = tuple(form_names(self.trainer.model.all_published(), fp8, form))
            share = tuple(form_names(self.trainer.share(self.rank, self.num_ranks), fp8, form))
        return publish(self.trainer.weights(version, form), share, table=table, rank=self.rank, version=version)

    def fingerprints(self, form: str) -> Mapping[str, str]:
        """`Trainer.fingerprints`."""
        return self.trainer.fingerprints(form)

    def routes(self, sequences: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
        """`Trainer.routes`."""
        return self.trainer.routes(sequences)

    def adapter(self) -> Mapping[str, Tensor]:
        """`Trainer.adapter`."""
        return self.trainer.adapter()

    def begin_stage(self) -> None:
        """`Trainer.begin_stage`."""
        self.trainer.begin_stage()

    def refresh_reference(self) -> None:
        """`Trainer.refresh_reference`."""
        self.trainer.refresh_reference()

    def save(self, folder: Path) -> None:
        """`Trainer.save` of this rank's state."""
        self.trainer.save(folder)

    def load(self, folder: Path) -> None:
        """`Trainer.load` of this rank's state."""
        self.trainer.load(folder)


class RewardModelActor:
    """One copy of a reward model."""

    def __init__(self, asked: Asked) -> None:
        torch.set_num_threads(cores_per(asked.actors))
        self.model = RewardModel(asked)

    def score(self, group: Group) -> list[float]:
        """`RewardModel.score`."""
        return self.model.score(group)
