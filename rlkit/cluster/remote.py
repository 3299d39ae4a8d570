"""Engines and trainer ranks in other processes, behind the same protocols as those in this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from rlkit.algo import NO_MTP, Loss, MtpTerm, shard
from rlkit.cluster.actors import RemoteWeights
from rlkit.types import Batch, Group, Prompt, Sampling, UpdateStats, Weights
from rlkit.watch import Console

POLL_S = 0.5


class RemoteEngines:
    """One or more engine actors as one `Engine`; prompts are dealt in equal runs, so batches and seeds stay."""

    def __init__(self, actors: Sequence[Any], console: Console) -> None:
        self.actors, self.console = actors, console

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        """Draw `n` completions for each prompt; groups come as the engines send them, in no order between engines."""
        per_engine = -(-len(prompts) // len(self.actors))
        shares = [prompts[i : i + per_engine] for i in range(0, len(prompts), per_engine)]
        running = [actor.generate.remote(share, n, sampling) for actor, share in zip(self.actors, shares, strict=False)]
        received = 0
        with self.console.bar("sampling", len(prompts) * n, "rollouts") as bar:
            while running:
                ready: list[Any] = ray.wait(running, timeout=POLL_S)[0]  # streams, which its types leave out
                bar.set(max(received, 0 if ready else self.finished()))
                for stream in ready:
                    arrived: Any = next(stream, None)
                    if arrived is None:
                        running.remove(stream)
                    else:
                        received += n
                        yield ray.get(arrived)

    def finished(self) -> int:
        """Rollouts that the running `generate` has finished, on all engines."""
        return sum(ray.get([actor.finished.remote() for actor in self.actors]))

    def drafts(self) -> tuple[int, int]:
        """Tokens proposed and accepted in the last `generate`, on all engines."""
        proposed, accepted = zip(*ray.get([actor.drafts.remote() for actor in self.actors]), strict=True)
        return sum(proposed), sum(accepted)

    def load(self, weights: Weights, version: int) -> None:
        """Replace the weights of every engine."""
        ray.get([actor.load.remote(weights, version) for actor in self.actors])

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs from the first engine; the gate asks each of them (`Asked`)."""
        return ray.get(self.actors[0].logprobs.remote(sequences))

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Block outputs from the first engine."""
        return ray.get(self.actors[0].trace.remote(tokens))


class Asked:
    """The model of one actor, already at work on the log-probs of `sequences`."""

    def __init__(self, actor: Any, sequences: Sequence[Sequence[int]]) -> None:
        self.actor, self.answer = actor, actor.logprobs.remote(sequences)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs of the sequences it was asked about."""
        return ray.get(self.answer)

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Block outputs."""
        return ray.get(self.actor.trace.remote(tokens))


class RemoteTrainer:
    """The trainer's ranks as one `Trainer`; a batch is dealt to them by samples."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors

    def update(self, batch: Batch, loss: Loss, lr: float, mtp: MtpTerm = NO_MTP) -> UpdateStats:
        """Take one optimiser step on the whole batch, spread over the ranks."""
        shares = shard(batch, len(self.actors))
        stats = ray.get(
            [actor.update.remote(share, loss, lr, mtp) for actor, share in zip(self.actors, shares, strict=True)]
        )
        mtp_losses = [stat.mtp_loss for stat in stats if stat.mtp_loss is not None]
        # Every rank's numbers are weighted by its share of the batch, so they add up.
        return UpdateStats(
            loss=sum(stat.loss for stat in stats),
            grad_norm=stats[0].grad_norm,
            entropy=sum(stat.entropy for stat in stats),
            kl=sum(stat.kl for stat in stats),
            clip_fraction=sum(stat.clip_fraction for stat in stats),
            logprob_gap=max(stat.logprob_gap for stat in stats),
            load=stats[0].load,  # counted over all ranks already
            mtp_loss=sum(mtp_losses) if mtp_losses else None,
        )

    def with_reference(self, batch: Batch) -> Batch:
        """Fill the reference log-probs, each rank those of its share."""
        shares = shard(batch, len(self.actors))
        filled = ray.get([a.with_reference.remote(share) for a, share in zip(self.actors, shares, strict=True)])
        return replace(batch, packs=tuple(pack for share in filled for pack in share.packs))

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs from rank 0; all ranks hold the same weights."""
        return ray.get(self.actors[0].logprobs.remote(sequences))

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Block outputs from rank 0."""
        return ray.get(self.actors[0].trace.remote(tokens))

    def weights(self) -> RemoteWeights:
        """Rank 0's weights, in the object store."""
        return ray.get(self.actors[0].publish.remote())

    def adapter(self) -> Mapping[str, Tensor]:
        """LoRA's matrices from rank 0."""
        return ray.get(self.actors[0].adapter.remote())

    def begin_stage(self) -> None:
        """Forget the moments and refresh the reference on every rank."""
        ray.get([actor.begin_stage.remote() for actor in self.actors])

    def refresh_reference(self) -> None:
        """Make the policy the reference on every rank."""
        ray.get([actor.refresh_reference.remote() for actor in self.actors])

    def save(self, folder: Path) -> None:
        """Write every rank's state; the folder must be one that all machines share."""
        ray.get([actor.save.remote(folder.absolute()) for actor in self.actors])

    def load(self, folder: Path) -> None:
        """Restore every rank's state."""
        ray.get([actor.load.remote(folder.absolute()) for actor in self.actors])
