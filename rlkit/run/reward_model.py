"""The run of a reward model: what is read and checked before it starts, and what it writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlkit.config import RewardModelRun
from rlkit.config.compose import clear_errors, load_config, parse_command, to_yaml
from rlkit.data.preferences import Labelled, Pair, to_preferences
from rlkit.data.rows import read_rows
from rlkit.data.tokenizer import copy_tokenizer
from rlkit.errors import UserError
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.scorer import scorer_config, write_scorer
from rlkit.parts import Learning
from rlkit.plan.adapters import adapter_parameters
from rlkit.plan.orthogonal import orthogonal_parameters
from rlkit.reward_model import judge_preferences
from rlkit.run.fit import check_shape, check_trainer
from rlkit.run.folder import CHECKPOINTS, newest_checkpoint
from rlkit.run.inputs import check_same
from rlkit.run.lock import check_free
from rlkit.run.machine import check_machine, check_memory
from rlkit.run.prepare import INITIAL, read_checkpoint
from rlkit.run.progress import MODEL, BaseProgress
from rlkit.watch.preferences import read_judgements, write_judgements
from rlkit.watch.stream import Lasting

MADE = "reasoning_gym"
"""The source whose rows have worked solutions, from which preferences are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Holds what a reward model learns from, and is measured on; no question is in both."""

    train: tuple[Pair, ...] | tuple[Labelled, ...]
    held_out: tuple[Pair, ...] | tuple[Labelled, ...]
    architecture: DeepseekArchitecture
    """Of the reward model."""


def open_reward_model(argv: Sequence[str] | None) -> tuple[RewardModelRun, RewardModelProgress] | None:
    """Opens the run that a command line asks for; None when it only asked for a look. Nothing is started.

    Every mistake that can be seen now ends here: `clear_errors`.
    """
    with clear_errors():
        command = parse_command("reward_model", sys.argv[1:] if argv is None else argv)
        cfg = load_config("reward_model", RewardModelRun, command.overrides)
        check_shape(cfg, command.overrides)
        task = None if command.print_only else prepare_preferences(cfg)
        if task is not None and not cfg.dry_run:
            return cfg, RewardModelProgress(cfg, task)
        screen = Lasting(sys.stdout)
        print(to_yaml(cfg), file=screen)
        if task is not None:
            check_free(cfg.output_dir)
            check_same(cfg)
            newest_checkpoint(cfg.output_dir / CHECKPOINTS)
            per_rank = cfg.reward_model.batch_size // cfg.trainer.num_shares
            print(f"preferences    {len(task.train):,} to train on, {len(task.held_out):,} held out", file=screen)
            print(f"batch          {cfg.reward_model.batch_size}, {per_rank} per rank", file=screen)
        end = "" if task is None else "; the data and the model are in order"
        print(f"\nnothing was started{end}", file=screen, flush=True)
        return None


def prepare_preferences(cfg: RewardModelRun) -> Preferences:
    """Reads and checks all that the run needs, without starting or writing anything.

    Raises UserError naming key, value and fix, for missing files and columns, samples that do not fit, and a
    checkpoint that is not one.
    """
    base, tokenizer = read_checkpoint(Path(cfg.model.path), cfg.model.kind)
    assert isinstance(base, DeepseekArchitecture), "RewardModelRun refuses this"
    architecture = DeepseekArchitecture(config=scorer_config(base.config))
    check_trainer(cfg, architecture)
    length, reach = cfg.reward_model.max_length, architecture.max_position_embeddings
    if length > reach:
        raise UserError(
            f"reward_model.max_length={length} is more than the model's max_position_embeddings={reach}; lower it"
        )
    made = cfg.data.source == MADE
    data = cfg.data if made else replace(cfg.data, answer_column="", solution_column="")
    split = read_rows(data, repeats=True)
    train, held_out = (
        to_preferences(rows, tokenizer, cfg.data.instruction, cfg.reward_model, made)
        for rows in (split.train, split.held_out)
    )
    size = architecture.size().parameters
    trained = adapter_parameters(cfg, architecture) or size
    check_machine(cfg, weights=size, trained=trained, orthogonal=orthogonal_parameters(cfg, architecture))
    check_memory(cfg, architecture)
    return Preferences(train=train, held_out=held_out, architecture=architecture)


class RewardModelProgress(BaseProgress[Learning]):
    """The run of a reward model, with its folder."""

    def __init__(self, cfg: RewardModelRun, task: Preferences) -> None:
        """Raises UserError as `BaseProgress` does."""
        super().__init__(cfg)
        self.cfg, self.task = cfg, task

    def initial(self) -> Path:
        """The checkpoint that the trainer loads: the language model with a new head, made on the first call."""
        folder = self.folder / INITIAL
        if not folder.exists():
            unfinished = folder.with_name(f"{INITIAL}.tmp")
            write_scorer(Path(self.cfg.model.path), unfinished, self.cfg.seed)
            copy_tokenizer(Path(self.cfg.model.path), unfinished)
            unfinished.rename(folder)
        return folder.absolute()

    def judge(self, name: str, step: int, parts: Learning) -> None:
        """Measures on the held-out preferences, once: what the folder already has is not measured again."""
        found = next((one for one in read_judgements(self.folder) if one.name == name), None)
        known = found is not None
        if found is None:
            held_out, most = self.task.held_out, self.cfg.trainer.max_tokens
            found = judge_preferences(parts.trainer, held_out, max_tokens=most, name=name, step=step)
            write_judgements(self.folder, found)
        numbers = found.numbers()
        self.metrics.write("eval", step, numbers, name)
        if not known:
            self.console.line(f"held-out preferences {name}: {found.summary()}")

    def export(self, parts: Learning) -> None:
        """Writes the reward model for transformers and for `reward=model:FOLDER`; LoRA is merged in."""
        path = self.folder / MODEL
        self.task.architecture.write(path, parts.trainer.weights(), self.cfg.trainer.dtype)
        copy_tokenizer(self.initial(), path)
        self.console.line(f"reward model: {path} (reward=model:{path})")
