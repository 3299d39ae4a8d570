"""One run and its folder: configuration, metrics, evaluations, checkpoints, report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import yaml

from rewards import RewardError
from rlkit.config import RunConfig
from rlkit.config.compose import clear_errors, flat_keys, load_config, parse_command, to_yaml
from rlkit.evaluate import evaluate
from rlkit.loop import Parts
from rlkit.model.load import write_model
from rlkit.model.lora import write_adapter
from rlkit.parity import ParityError
from rlkit.run.folder import START, Position, newest_checkpoint, save_checkpoint
from rlkit.run.plan import show
from rlkit.run.prepare import Task, initial_checkpoint
from rlkit.sft import SftStats
from rlkit.types import StepStats
from rlkit.watch import Console, Metrics, read_evaluations, write_evaluation, write_report
from rlkit.watch.console import Bar
from rlkit.watch.metrics import write_atomic
from rlkit.watch.verdicts import NoVerdictError

R = TypeVar("R", bound=RunConfig)
CONFIG_FILE = "config.yaml"
MODEL = "model"
"""Folder of the trained model, inside the output folder."""
ADAPTER = "adapter"
"""Folder of LoRA's matrices, inside that of the model, where they are merged in."""
MAY_CHANGE = (
    *("resume", "dry_run", "output_dir", "cluster.address", "logging.", "checkpoint.", "evaluation.every"),
    *("reward.timeout", "reward.workers"),
)
"""Keys that may differ when a run goes on; any other would make it another run."""
SAY_ALL = (RewardError, NoVerdictError, ParityError)
"""Errors of a run whose message names what failed and what to do; where they arose in rlkit helps nobody."""
SFT_LINES = 20
"""Lines that an SFT stage prints; metrics.jsonl has every step."""


def open_run(recipe: str, cls: type[R], argv: Sequence[str] | None) -> tuple[R, Run] | None:
    """From a command line to a checked configuration and its folder; None when it only asked for a look.

    Every mistake that can be seen now ends here, before anything is started: `clear_errors`.
    """
    with clear_errors():
        command = parse_command(recipe, sys.argv[1:] if argv is None else argv)
        cfg = load_config(recipe, cls, command.overrides)
        task = show(cfg, print_only=command.print_only)
        return None if task is None else (cfg, Run(cfg, task))


class Run:
    """Opens the folder, finds where to go on, and records what the loops yield; use it in a `with` block."""

    def __init__(self, cfg: RunConfig, task: Task) -> None:
        """Raises ValueError if the folder holds a run that this one may not continue."""
        self.cfg, self.task, self.folder = cfg, task, cfg.output_dir
        self.restored = self._find()
        self.position = self.restored[1] if self.restored else START
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / CONFIG_FILE, to_yaml(cfg))
        self.console = Console(self.folder)
        self.metrics = Metrics(
            self.folder,
            tensorboard=cfg.logging.tensorboard,
            wandb_project=cfg.logging.wandb_project,
            resume_after=(self.position.stage, self.position.step) if self.restored else None,
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files and write the report, whatever happened.

        What has a message that says all there is to do, and Ctrl-C, end the program with it and without a traceback.
        """
        self.metrics.close()
        self.console.close()
        path = write_report(self.folder, f"rlkit: {self.cfg.recipe}")
        self.console.line(f"report: {path}")
        if isinstance(error, SAY_ALL):
            for note in getattr(error.__cause__, "__notes__", ()):
                print(note, file=sys.stderr)
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        if isinstance(error, KeyboardInterrupt):
            print("interrupted; with resume=auto the same command goes on from the newest checkpoint", file=sys.stderr)
            raise SystemExit(130) from None

    def restore(self, parts: Parts) -> None:
        """Bring trainer and engine to where the newest checkpoint was, and check that they agree."""
        if self.restored:
            path, position = self.restored
            parts.trainer.load(path)
            self.console.line(f"resuming after {position.stage} step {position.step} from {path}")
            if (self.folder / MODEL).exists():
                self.console.line("this run is complete; for a new one, set another output_dir")
        self.sync(parts, self.position.weight_version)

    def sync(self, parts: Parts, version: int) -> None:
        """Publish the weights outside a step, and say what the parity gate measured."""
        gap = parts.sync(version)
        limit = f"limit {self.cfg.parity.tolerance:g}" if self.cfg.engine.dtype == "fp32" else "bf16: reported only"
        self.console.line(f"parity: engine and trainer agree within {gap:.1e} nats ({limit})")

    def begin_grpo(self, parts: Parts) -> None:
        """Between the stages: fresh optimiser, SFT weights as reference, weights to the engine."""
        if self.position.stage == "sft":
            parts.trainer.begin_stage()
            self.sync(parts, 0)

    def bar(self, label: str, total: int) -> AbstractContextManager[Bar]:
        """Progress through the steps of a stage."""
        return self.console.bar(label, total, "steps")

    def record(self, step: int, total: int, stats: StepStats | SftStats, parts: Parts) -> None:
        """Print a step's line, append its numbers, take a checkpoint when one is due."""
        stage, values = "grpo" if isinstance(stats, StepStats) else "sft", stats.values()
        if stage == "grpo" or step % max(1, total // SFT_LINES) == 0 or step == 1:
            self.console.step(stage, step, total, values)
        self.metrics.write(stage, step, values)
        synced = isinstance(stats, StepStats) and stats.parity is not None
        version = step if synced else self.position.weight_version
        self.position = Position(stage=stage, step=step, weight_version=version)
        every = self.cfg.checkpoint.every
        if stage == "grpo" and step != total and self.cfg.evaluation.every and step % self.cfg.evaluation.every == 0:
            self.evaluate(f"GRPO step {step}", step, parts)
        if step == total or (every and step % every == 0):
            save_checkpoint(self.folder / "checkpoints", self.position, parts.trainer, self.cfg.checkpoint.keep)

    def evaluate(self, name: str, step: int, parts: Parts) -> None:
        """Measure held-out accuracy once: an evaluation that the folder already has is not repeated."""
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
        """Write the policy as a checkpoint that transformers, vLLM and `model.path` load; LoRA also as an adapter."""
        path = self.folder / folder
        write_model(self.task.architecture, parts.trainer.weights(), path, self.cfg.trainer.dtype)
        self.task.tokenizer.save_pretrained(path)
        if (lora := self.cfg.trainer.lora) is not None:
            base = initial_checkpoint(self.cfg, self.task).absolute()
            write_adapter(path / ADAPTER, parts.trainer.adapter(), rank=lora.rank, alpha=lora.alpha, base=base)
        self.console.line(f"model: {path}")

    def _find(self) -> tuple[Path, Position] | None:
        found = newest_checkpoint(self.folder / "checkpoints")
        saved = self.folder / CONFIG_FILE
        if self.cfg.resume == "never" and saved.exists():
            raise ValueError(
                f"output_dir={self.folder} already holds a run, and resume=never; set resume=auto to continue it, or "
                "another output_dir"
            )
        if saved.exists():
            self._compare(yaml.safe_load(saved.read_text()))
        return found

    def _compare(self, before: Mapping[str, object]) -> None:
        old, new = dict(flat_keys(before)), dict(flat_keys(yaml.safe_load(to_yaml(self.cfg))))
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        changed = [key for key in changed if not key.startswith(MAY_CHANGE)]
        if changed:
            key = changed[0]
            raise ValueError(
                f"output_dir={self.folder} holds a run with other settings: {', '.join(changed)} ({key} was "
                f"{old.get(key)!r}, now {new.get(key)!r}); use another output_dir, or the settings in "
                f"{self.folder / CONFIG_FILE}"
            )
