"""Engines and trainer ranks in other processes, behind the same protocols as those in this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from rlkit.algo import NO_MTP, Loss, MtpTerm, shard
from rlkit.cluster.deaths import deaths_named
from rlkit.cluster.transfer import RemoteWeights
from rlkit.engine.examination import Examination
from rlkit.parts import SyncError
from rlkit.scoring.models import ScoreGroup
from rlkit.train.rounding import Rounding
from rlkit.types import Batch, Group, Numbers, Prompt, Sampling, Weights
from rlkit.watch.progress import Progress, silent

POLL_S = 0.5


class RemoteEngines:
    """One or more engine actors as one `Engine`; prompts are dealt in equal runs, so batches and seeds stay."""

    def __init__(self, actors: Sequence[Any], progress: Progress = silent) -> None:
        """Takes the handles of the actors; they may still be loading."""
        self._actors, self._progress = actors, progress

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        """Draws `n` completions for each prompt; groups come as the engines send them, in no order between engines."""
        per_engine = -(-len(prompts) // len(self._actors))
        shares = [prompts[i : i + per_engine] for i in range(0, len(prompts), per_engine)]
        running = [a.generate.remote(share, n, sampling) for a, share in zip(self._actors, shares, strict=False)]
        received = 0
        with self._progress("sampling", len(prompts) * n, "rollouts") as bar, deaths_named():
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
        """Counts the rollouts that the running `generate` has finished, on all engines."""
        return sum(_answers([actor.finished.remote() for actor in self._actors]))

    def drafts(self) -> tuple[int, int]:
        """Counts the tokens proposed and accepted in the last `generate`, on all engines."""
        proposed, accepted = zip(*_answers([actor.drafts.remote() for actor in self._actors]), strict=True)
        return sum(proposed), sum(accepted)

    def load(self, weights: Weights, version: int) -> None:
        """Replaces the weights of every engine; each pulls them itself.

        Raises SyncError if they are not the ranks' weights of this version, name by name and byte for byte.
        """
        if isinstance(weights, RemoteWeights) and weights.version != version:
            raise SyncError(f"the weights are of version {weights.version}, but version {version} is to be loaded")
        _answers([actor.load.remote(weights, version) for actor in self._actors])

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Asks the first engine for log-probs; the gate asks each of them (`replicas`)."""
        return _answers([self._actors[0].logprobs.remote(sequences)])[0]

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Asks the first engine for block outputs."""
        return _answers([self._actors[0].trace.remote(tokens)])[0]

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        """Asks the first engine what it computes with; the gate asks each of them (`replicas`)."""
        return _answers([self._actors[0].examine.remote(sequences)])[0]

    def replicas(self) -> Sequence[RemoteEngines]:
        """Every engine alone, as the gate asks them."""
        return [RemoteEngines([actor]) for actor in self._actors]


def remote_copy(actor: Any) -> ScoreGroup:
    """Makes of an actor with a reward model what scores a group; it raises PartDiedError when the actor has died."""
    return lambda group: _answers([actor.score.remote(group)])[0]


class RemoteTrainer:
    """The trainer's ranks as one `Trainer`; a batch is dealt by samples to them, or to pipelines of them."""

    def __init__(self, ranks: Sequence[Any], starting: Sequence[ray.ObjectRef] = (), *, num_stages: int = 1) -> None:
        """Takes the handles of the ranks, and what they answer when they have met and loaded the model.

        The first ranks are those of the first of the pipelines' stages, and so on.
        """
        self._ranks, self._starting, self._num_stages = ranks, list(starting), num_stages

    def update(self, batch: Batch, loss: Loss, lr: float, mtp: MtpTerm = NO_MTP) -> Numbers:
        """Takes one optimiser step on the whole batch, spread over the ranks; each of them knows all numbers."""
        # All ranks of a pipeline get the same share.
        shares = shard(batch, len(self._ranks) // self._num_stages) * self._num_stages
        return self._all(
            [rank.update.remote(share, loss, lr, mtp) for rank, share in zip(self._ranks, shares, strict=True)]
        )[0]

    def logprobs(self, sequences: Sequence[Sequence[int]], rounding: Rounding | None = None) -> list[list[float]]:
        """Asks for log-probs; every rank must run the model, because each may hold a part of it."""
        return self._all([rank.logprobs.remote(sequences, rounding) for rank in self._ranks])[0]

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Asks for scores; every rank must run the model, because each may hold a part of it."""
        return self._all([rank.scores.remote(sequences) for rank in self._ranks])[0]

    def trace(self, tokens: Sequence[int], rounding: Rounding | None = None) -> Mapping[str, Tensor]:
        """Asks for block outputs, of which every rank has the same."""
        return self._all([rank.trace.remote(tokens, rounding) for rank in self._ranks])[0]

    def weights(self, version: int = 0, form: str = "plain") -> RemoteWeights:
        """Lets every rank publish its share in the object store; no weight passes through this process."""
        published = self._all([rank.publish.remote(version, form) for rank in self._ranks])
        return RemoteWeights(version=version, publications=tuple(published))

    def fingerprints(self, form: str) -> Mapping[str, str]:
        """Asks every rank for the fingerprints of what it holds; together they are those of the model."""
        prints: dict[str, str] = {}
        for part in self._all([rank.fingerprints.remote(form) for rank in self._ranks]):
            prints |= part
        return prints

    def routes(self, sequences: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
        """Asks for the experts that the routers choose, of which every rank has the same."""
        return self._all([rank.routes.remote(sequences) for rank in self._ranks])[0]

    def adapter(self) -> Mapping[str, Tensor]:
        """Asks rank 0 for LoRA's matrices."""
        return self._all([self._ranks[0].adapter.remote()])[0]

    def begin_stage(self) -> None:
        """Forgets the moments and refreshes the reference on every rank."""
        self._all([rank.begin_stage.remote() for rank in self._ranks])

    def refresh_reference(self) -> None:
        """Makes the policy the reference on every rank."""
        self._all([rank.refresh_reference.remote() for rank in self._ranks])

    def save(self, folder: Path) -> None:
        """Writes every rank's state; the folder must be one that all machines share."""
        self._all([rank.save.remote(folder.absolute()) for rank in self._ranks])

    def load(self, folder: Path) -> None:
        """Restores every rank's state."""
        self._all([rank.load.remote(folder.absolute()) for rank in self._ranks])

    def _all(self, asked: Sequence[ray.ObjectRef]) -> list[Any]:
        """Waits for answers; what went wrong while the ranks started is raised first, where it says more."""
        answers = _answers([*self._starting, *asked])[len(self._starting) :]
        self._starting = []
        return answers


def _answers(asked: Sequence[ray.ObjectRef]) -> list[Any]:
    with deaths_named():
        return ray.get(list(asked))
