"""Steps that were skipped, because the loss or its gradient is no number: told, written, and not too many in a row.

One such step harms nothing: nothing of the trainer has changed, and the next batch is another one. What caused it may
be a fault in a reward, a loss or the data, so the batch is written where a person can look at it and take the same step
again. Where skipped steps follow each other the run has diverged, and goes on in vain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlkit.algo.losses import NO_MTP, Loss, MtpTerm
from rlkit.algo.packing import shard, tensor_names
from rlkit.data.tokenizer import read_decoder
from rlkit.errors import DivergedError
from rlkit.train.base import Trainer
from rlkit.train.rounding import Rounding
from rlkit.types import Batch, LabelledPack, Numbers, Pack, PairPack, PolicyPack, TaughtPack, Weights

SKIPPED = "skipped"
"""The folder of such batches, inside the output folder."""
COUNTS = "skipped.json"
"""In a checkpoint: how many updates there were, and how many of the last ones were skipped."""
PACKS = {kind.__name__: kind for kind in (Pack, PolicyPack, TaughtPack, PairPack, LabelledPack)}
"""The packs that a file may hold, by their names there."""
ADVICE = (
    "look at it, at the reward and at a loss of your own, or start again in another output_dir with a lower learning "
    "rate (sft.schedule.lr, algo.schedule.lr or on_policy.schedule.lr)"
)


class WatchedTrainer:
    """A `Trainer` around another one, which it lets do everything; it stands where the run is told, not on a rank.

    The counts are part of every checkpoint. So a run that was killed and goes on ends where it would have ended anyway.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        folder: Path,
        most: int,
        num_ranks: int,
        tokenizer: Path,
        say: Callable[[str], None] = print,
    ) -> None:
        """Writes skipped batches, as dealt to `num_ranks`, into the folder; `most` in a row are let pass.

        The tokenizer's folder is read where there is a batch to write; without tokenizer.json texts are left out.
        """
        self.trainer, self._folder, self._most, self._num_ranks = trainer, folder, most, num_ranks
        self._tokenizer, self._say = tokenizer, say
        self._updates = self._in_row = 0

    def update(self, batch: Batch, loss: Loss, lr: float, mtp: MtpTerm = NO_MTP) -> Numbers:
        """Takes one optimiser step, or says that it was skipped; DivergedError if too many were, one after the other.

        The error names the file of the batch.
        """
        numbers = self.trainer.update(batch, loss, lr, mtp)
        self._updates += 1
        if not numbers["skipped"]:
            self._in_row = 0
            return numbers
        self._in_row += 1
        told = {"update": self._updates, "lr": lr, "loss": repr(loss), "mtp": asdict(mtp), "numbers": dict(numbers)}
        file = self._folder / f"{self._updates:06}.safetensors"
        write_batch(file, shard(batch, self._num_ranks), told, self._decoder())
        name = next(n for n in ("loss", "mtp_loss", "grad_norm") if not math.isfinite(numbers.get(n, 0.0)))
        why = f"the {'gradient norm' if name == 'grad_norm' else name} of update {self._updates} is {numbers[name]}"
        if self._in_row > self._most:
            before = f", and those before it were skipped too: trainer.max_skipped={self._most}" if self._most else ""
            raise DivergedError(
                f"{why}{before}; no step was taken, and the weights are those of the step before; the batch is in "
                f"{file}: {ADVICE}"
            )
        self._say(
            f"warning: {why}, so it was skipped ({self._in_row} in a row; the run ends after more than "
            f"{self._most}); weights, moments and router biases stay; the batch is in {file}: if it happens again, "
            f"{ADVICE}"
        )
        return numbers

    def _decoder(self) -> Callable[[Sequence[int]], str]:
        return read_decoder(self._tokenizer) if (self._tokenizer / "tokenizer.json").exists() else lambda _tokens: ""

    def logprobs(self, sequences: Sequence[Sequence[int]], rounding: Rounding | None = None) -> list[list[float]]:
        """Asks the trainer."""
        return self.trainer.logprobs(sequences, rounding)

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Asks the trainer."""
        return self.trainer.scores(sequences)

    def trace(self, tokens: Sequence[int], rounding: Rounding | None = None) -> Mapping[str, Tensor]:
        """Asks the trainer."""
        return self.trainer.trace(tokens, rounding)

    def weights(self, version: int = 0, form: str = "plain") -> Weights:
        """Asks the trainer."""
        return self.trainer.weights(version, form)

    def fingerprints(self, form: str) -> Mapping[str, str]:
        """Asks the trainer."""
        return self.trainer.fingerprints(form)

    def routes(self, sequences: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
        """Asks the trainer."""
        return self.trainer.routes(sequences)

    def adapter(self) -> Mapping[str, Tensor]:
        """Asks the trainer."""
        return self.trainer.adapter()

    def begin_stage(self) -> None:
        """Begins a stage, which starts with no step skipped."""
        self._in_row = 0
        self.trainer.begin_stage()

    def refresh_reference(self) -> None:
        """Asks the trainer."""
        self.trainer.refresh_reference()

    def save(self, folder: Path) -> None:
        """Writes the trainer's state and the counts."""
        self.trainer.save(folder)
        (folder / COUNTS).write_text(json.dumps({"updates": self._updates, "in_row": self._in_row}) + "\n")

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote."""
        self.trainer.load(folder)
        counts = json.loads((folder / COUNTS).read_text()) if (folder / COUNTS).exists() else {}
        self._updates, self._in_row = counts.get("updates", 0), counts.get("in_row", 0)


def write_batch(
    file: Path, shares: Sequence[Batch], told: Mapping[str, Any], decode: Callable[[Sequence[int]], str]
) -> None:
    """Writes what each rank had of a batch: tensors "rank.pack.name", and in the file's metadata JSON under "batch".

    The JSON has what is `told` of the update, and lists every sample with the id and the text of prompt and completion.
    """
    tensors, packs = dict[str, Tensor](), []
    for rank, share in enumerate(shares):
        for number, pack in enumerate(share.packs):
            tensors |= {f"{rank}.{number}.{name}": getattr(pack, name).cpu() for name in tensor_names(pack)}
            samples = list(_samples(pack, decode))
            told_of = {"lengths": pack.lengths, "ids": pack.ids, "samples": samples, "kind": type(pack).__name__}
            packs.append({"rank": rank, "pack": number, **told_of})
    whole = {name: getattr(shares[0], name) for name in ("temperature", "num_samples", "num_tokens")}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    save_file(tensors, unfinished, {"batch": json.dumps({**told, "num_ranks": len(shares), **whole, "packs": packs})})
    unfinished.replace(file)


def read_batch(file: Path) -> tuple[list[Batch], dict[str, Any]]:
    """Returns the share of each rank and what was told of the update, as `write_batch` wrote them."""
    with safe_open(file, framework="pt") as reader:
        told = json.loads(reader.metadata()["batch"])
        tensors = {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118 - not a mapping
    shares: list[list[Pack]] = [[] for _ in range(told["num_ranks"])]
    for each in told["packs"]:
        prefix = f"{each['rank']}.{each['pack']}."
        found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        kind = PACKS[each["kind"]]
        shares[each["rank"]].append(kind(lengths=tuple(each["lengths"]), ids=tuple(each["ids"]), **found))
    whole = {name: told[name] for name in ("temperature", "num_samples", "num_tokens")}
    return [Batch(packs=tuple(packs), **whole) for packs in shares], told


def _samples(pack: Pack, decode: Callable[[Sequence[int]], str]) -> Iterator[dict[str, str]]:
    """Yields id, prompt and completion of each sample; the completion begins with the first token that has a weight."""
    parts = zip(pack.tokens_T.split(list(pack.lengths)), pack.weights_T.split(list(pack.lengths)), strict=True)
    for i, (tokens_T, weights_T) in enumerate(parts):
        trained = weights_T.nonzero()
        first = int(trained[0]) if len(trained) else len(tokens_T)
        text = {"prompt": decode(tokens_T[:first].tolist()), "completion": decode(tokens_T[first:].tolist())}
        yield {"id": pack.ids[i] if i < len(pack.ids) else "", **text}
