"""A run while it goes: follow the stages, record every step, evaluate, take checkpoints, write the model at the end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, NoReturn, Self, TypeVar

from rewards import RewardError
from rlkit.config import LearningRun, TrainingRun
from rlkit.data.tokenizer import copy_tokenizer
from rlkit.errors import DivergedError, PartDiedError, UserError
from rlkit.evaluate import evaluate
from rlkit.interrupt import GO_ON, INTERRUPTED, raise_again
from rlkit.model.files.sent import SentError
from rlkit.model.lora import write_adapter
from rlkit.parity import LENGTH, NUM_SEQUENCES, ParityError, gate_sequences
from rlkit.parts import Learning, Parts, SyncError
from rlkit.rollout.judging import NoVerdictError
from rlkit.run.best import BEST, is_lowest, replacing_best, write_score
from rlkit.run.folder import CHECKPOINTS, START, newest_checkpoint, save_checkpoint
from rlkit.run.inputs import check_same, write_inputs
from rlkit.run.lock import Lock
from rlkit.run.prepare import Task, initial_checkpoint
from rlkit.types import Step
from rlkit.watch import Console, Metrics, read_evaluations, write_evaluation, write_report
from rlkit.watch.metrics import HELD_OUT, named

MODEL = "model"
"""Folder of the trained model, inside the output folder."""
ADAPTER = "adapter"
"""Folder of LoRA's matrices, inside that of the model, where they are merged in."""
SAY_ALL = (UserError, RewardError, NoVerdictError, ParityError, SentError, DivergedError)
"""Errors of a run whose message names what failed and what to do; where they arose in rlkit helps nobody."""
FULL_BYTES = 2**20
"""A disk with less than this free is full: whatever error a run ended with, this is why."""
QUIET_LINES = 20
"""Lines that a stage prints whose steps sample nothing and take no time; metrics.jsonl has every step."""


P = TypeVar("P", bound=Learning)


class BaseProgress(Generic[P]):
    """One run and its folder, whatever it learns from; use it in a `with` block.

    It finds where to go on, records what the stories yield, and writes the report whatever happens.
    """

    def __init__(self, cfg: LearningRun) -> None:
        """Raises UserError if another run is in the folder, or has left there what this one may not continue."""
        self.cfg, self.folder = cfg, cfg.output_dir
        self._lock = Lock(self.folder)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        check_same(self.cfg)
        self.restored = newest_checkpoint(self.folder / CHECKPOINTS)
        write_inputs(self.cfg)
        self.position = self.restored[1] if self.restored else START
        self._newest = self.restored[0] if self.restored else None
        self._followed: set[str] = set()
        self.console = Console(self.folder)
        self.metrics = Metrics(
            self.folder,
            tensorboard=self.cfg.logging.tensorboard,
            wandb_project=self.cfg.logging.wandb_project,
            resume_after=(self.position.stage, self.position.step) if self.restored else None,
        )

    def __enter__(self) -> Self:
        raise_again()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the files and writes the report, whatever happened.

        An error whose message says all there is to do, and Ctrl-C, end the program with it and without a traceback.
        """
        full = isinstance(error, Exception) and shutil.disk_usage(self.folder).free < FULL_BYTES
        with suppress(OSError) if full else nullcontext():  # the first error is the one to tell
            self.metrics.close()
            self.console.close()
            self.console.line(f"report: {write_report(self.folder, f'rlkit: {self.cfg.recipe}')}")
        self._lock.release()
        if isinstance(error, KeyboardInterrupt):
            print(GO_ON, file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        if full:
            self._leave(f"the disk of output_dir={self.folder} is full; {self._kept()}, when there is room again")
        if isinstance(error, PartDiedError):
            self._leave(f"{error}; {self._kept()}")
        if isinstance(error, SyncError):
            self._leave(f"{getattr(error, 'cause', error)}; {self._kept()}")
        if isinstance(error, SAY_ALL):
            for note in getattr(error.__cause__, "__notes__", ()):
                print(note, file=sys.stderr)
            # What a part on Ray raises is both: an error of its own class, and Ray's, whose text is a traceback.
            self._leave(str(getattr(error, "cause", error)))

    def _leave(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1) from None

    def _kept(self) -> str:
        """Says what a run that ends here leaves behind, and how it goes on."""
        if not self._newest:
            return "no checkpoint was due yet; the same command begins again"
        return f"{self._newest} and metrics.jsonl are kept; with resume=auto the same command goes on from there"

    def restore_trainer(self, parts: P) -> None:
        """Brings the trainer to where the newest checkpoint was."""
        if self.restored:
            path, position = self.restored
            parts.trainer.load(path)
            self.console.line(f"resuming after {position.stage} step {position.step} from {path}")
            if (self.folder / MODEL).exists():
                self.console.line("this run is complete; for a new one, set another output_dir")

    def steps_done(self, stage: str, total: int) -> int:
        """Steps of a stage that an earlier life of this run has taken."""
        return self.position.steps_done(stage, total)

    def follow(self, stage: str, total: int, steps: Iterator[Step], parts: P) -> None:
        """Takes the steps of a stage behind a progress bar: prints and records each, saves when it is due."""
        if stage in self._followed:
            raise UserError(
                f"stage={stage!r} is followed twice by this recipe; give the second stage a name of its own"
            )
        self._followed.add(stage)
        with self.console.bar(named(stage), total, "steps") as bar:
            for step in steps:
                self.record(step, total, parts)
                bar.set(step.step)

    def record(self, done: Step, total: int, parts: P) -> None:
        """Prints a step's line, appends its numbers, evaluates and takes a checkpoint when they are due."""
        stage, step, sampled = done.stage, done.step, done.weight_version is not None
        if sampled or HELD_OUT in done.numbers or step == 1 or step % max(1, total // QUIET_LINES) == 0:
            self.console.step(stage, step, total, done.numbers)
        self.metrics.write(stage, step, done.numbers)
        self.position = self.position.after(stage, step, done.weight_version, done.cursors)
        self.measure(done, total, parts)
        every = self.cfg.checkpoint.every
        if step == total or (every and step % every == 0):
            checkpoints, keep = self.folder / CHECKPOINTS, self.cfg.checkpoint.keep
            self._newest = save_checkpoint(checkpoints, self.position, parts.trainer, keep)

    def measure(self, done: Step, total: int, parts: P) -> None:
        """Measures after a step what a run wants to see then; nothing, unless it says so."""


class Run(BaseProgress[Parts]):
    """A run that samples, with its folder."""

    def __init__(self, cfg: TrainingRun, task: Task) -> None:
        """Raises UserError as `BaseProgress` does."""
        super().__init__(cfg)
        self.cfg, self.task = cfg, task

    def initial(self) -> Path:
        """The checkpoint that all parts load first; a new model is made on the first call."""
        return initial_checkpoint(self.cfg, self.task).absolute()

    def gate_sequences(self) -> tuple[tuple[int, ...], ...]:
        """The fixed sequences on which the parity gate compares engine and trainer."""
        prompts = [prompt.tokens for prompt in self.task.held_out[:NUM_SEQUENCES]]
        length = min(LENGTH, self.cfg.engine.max_model_len - 1)
        return gate_sequences(self.task.architecture.vocab_size, NUM_SEQUENCES, length, self.cfg.seed, prompts)

    def restore(self, parts: Parts) -> None:
        """Brings trainer and engine to where the newest checkpoint was, and checks that they agree."""
        self.restore_trainer(parts)
        if self.restored:
            self.task.demonstrations.resume(self.position.cursors)
        self.sync(parts, self.position.weight_version)

    def sync(self, parts: Parts, version: int) -> None:
        """Publishes the weights outside a step, and says what the parity gate measured."""
        self.console.line(f"parity: {parts.sync(version)}")

    def begin_stage(self, stage: str, parts: Parts) -> None:
        """Before the first step of a later stage: forget the optimiser's moments, make the policy the reference.

        The engine gets the weights too. A run that goes on inside the stage, or behind it, has done this before.
        """
        if not self.position.has_begun(stage):
            self.position = self.position.begin(stage)
            parts.trainer.begin_stage()
            self.sync(parts, self.position.weight_version)

    def measure(self, done: Step, total: int, parts: Parts) -> None:
        """Keeps the model of the lowest held-out loss, and evaluates between steps of a stage that samples."""
        stage, step, loss = done.stage, done.step, done.numbers.get(HELD_OUT)
        if loss is not None and is_lowest(self.folder, stage, step, loss):
            self._keep_best(stage, step, loss, parts)
        every = self.cfg.evaluation.every
        if done.weight_version is not None and every and step % every == 0 and step != total:
            self.evaluate(f"{named(stage)} step {step}", step, parts)

    def _keep_best(self, stage: str, step: int, loss: float, parts: Parts) -> None:
        """Writes the model as the best so far, in the place of the one before."""
        with replacing_best(self.folder) as folder:
            self._write_model(folder, parts)
            write_score(folder, stage, step, loss)
        self.console.line(f"best so far: {self.folder / BEST}, held-out loss {loss:.4f} at {named(stage)} step {step}")

    def evaluate(self, name: str, step: int, parts: Parts) -> None:
        """Measures held-out accuracy once: an evaluation that the folder already has is not repeated.

        Where no question is held out, there is nothing to measure.
        """
        if not self.task.held_out:
            return
        result = next((done for done in read_evaluations(self.folder) if done.name == name), None)
        known = result is not None
        if result is None:
            sampling = self.cfg.evaluation.sampling.seeded(self.cfg.seed)
            result = evaluate(parts.engine, parts.reward, self.task.held_out, sampling, name=name, step=step)
            write_evaluation(self.folder, result)
        # Also when it is known: a kill may have cut its line, and a line that is there is not written twice.
        values = {"accuracy": result.accuracy, "problems": result.problems, "length": result.mean_length}
        self.metrics.write("eval", step, values | {"truncated": result.truncated}, name)
        if known:
            return
        self.console.line(
            f"held-out accuracy {name}: {result.accuracy:.1%} of {result.problems} problems, "
            f"{result.mean_length:.1f} tokens each"
        )

    def export(self, parts: Parts, folder: str = MODEL) -> None:
        """Writes the policy as a checkpoint that transformers, vLLM and `model.path` load; LoRA also as an adapter."""
        path = self.folder / folder
        self._write_model(path, parts)
        self.console.line(f"model: {path}")

    def _write_model(self, path: Path, parts: Parts) -> None:
        self.task.architecture.write(path, parts.trainer.weights(), self.cfg.trainer.dtype)
        copy_tokenizer(self.initial(), path)
        if (lora := self.cfg.trainer.lora) is not None:
            adapter = parts.trainer.adapter()
            write_adapter(path / ADAPTER, adapter, rank=lora.rank, alpha=lora.alpha, base=self.initial())
