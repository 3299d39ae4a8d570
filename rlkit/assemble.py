"""Start the parts of a run, each alone and wherever the configuration puts it, and join them for a run that trains.

Every part is a context manager that needs no run folder: a recipe takes what it needs. A recipe that only samples and
judges starts no trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import distributed

from rlkit.build import build_engine, build_trainer
from rlkit.cluster.reaper import reaped
from rlkit.config import RewardConfig, RunConfig, TrainingRun
from rlkit.data.tokenizer import load_tokenizer
from rlkit.engine.base import Engine
from rlkit.engine.turns import TakingTurns
from rlkit.interrupt import leaving_at_once
from rlkit.model.files.sent import form_for
from rlkit.parity import Agreement, fp8_gate, gate
from rlkit.parts import Parts
from rlkit.quant.fp8 import FLOAT8
from rlkit.run.progress import Run
from rlkit.run.served import served_checkpoint
from rlkit.scoring.policy import PolicyJudge, asks_policy
from rlkit.scoring.pool import Scorer, build_reward
from rlkit.train.base import Trainer
from rlkit.train.rounding import UNIT
from rlkit.train.skipped import SKIPPED, WatchedTrainer
from rlkit.watch.progress import Progress, silent


@contextmanager
def engine(cfg: RunConfig, checkpoint: Path, progress: Progress = silent) -> Iterator[Engine]:
    """Starts what samples, from a checkpoint folder; `progress` shows how many rollouts are finished.

    On Ray the engines may still be loading when the block begins; the first call waits for them.
    """
    checkpoint = served_checkpoint(cfg, checkpoint)
    if cfg.cluster.kind == "local":
        yield build_engine(cfg.engine, checkpoint, cfg.model.kind, cfg.served_adapter, progress)
        return
    from rlkit.cluster.start import engines_on_ray, on_ray  # cluster=local runs without Ray

    with reaped(), on_ray(cfg, checkpoint), engines_on_ray(cfg, checkpoint, progress) as sampler:
        yield sampler


@contextmanager
def trainer(cfg: TrainingRun, checkpoint: Path, say: Callable[[str], None] = print) -> Iterator[Trainer]:
    """Starts what learns, from a checkpoint folder; on Ray the ranks may still be loading when the block begins.

    It says when it skips a step, writes the batch below `cfg.output_dir`, and gives up after too many in a row.
    """
    with _bare_trainer(cfg, checkpoint) as learner:
        yield WatchedTrainer(
            learner,
            folder=cfg.output_dir / SKIPPED,
            most=cfg.trainer.max_skipped,
            num_ranks=cfg.trainer.num_shares,
            tokenizer=checkpoint,
            say=say,
        )


@contextmanager
def _bare_trainer(cfg: TrainingRun, checkpoint: Path) -> Iterator[Trainer]:
    if cfg.cluster.kind == "local":
        yield build_trainer(
            cfg.trainer,
            checkpoint,
            cfg.model.kind,
            keep_reference=cfg.needs_reference,
            seed=cfg.seed,
            store=distributed.HashStore(),
            rank=0,
        )
        return
    from rlkit.cluster.start import on_ray, trainer_on_ray

    with reaped(), on_ray(cfg, checkpoint), trainer_on_ray(cfg, checkpoint) as learner:
        yield learner


@contextmanager
def reward(cfg: RewardConfig) -> Iterator[Scorer]:
    """Starts what judges, in plain processes beside this one."""
    with reaped(), build_reward(cfg) as judge:
        yield judge


@contextmanager
def parts(
    cfg: TrainingRun,
    checkpoint: Path,
    sequences: Sequence[Sequence[int]],
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> Iterator[Parts]:
    """Starts all three and joins them by the parity gate, which compares on `sequences`; `say` as in `trainer`."""
    # The reward first: its processes load it while the models are loaded.
    with (
        reaped(),
        reward(cfg.reward) as judge,
        # Engines before ranks: an engine needs all its GPUs on one machine, and ranks are spread over what is left.
        engine(cfg, checkpoint, progress) as sampler,
        trainer(cfg, checkpoint, say) as learner,
    ):
        if asks_policy(cfg.reward):
            sampler = TakingTurns(sampler)
            judge.judged_by(PolicyJudge(sampler, load_tokenizer(checkpoint), cfg.engine.max_model_len))
        yield Parts(
            engine=sampler,
            trainer=learner,
            reward=judge,
            gate=_gate(cfg, sampler, learner, sequences),
            form=form_for(cfg.trainer.dtype, cfg.engine.dtype),
            serves_adapter=cfg.served_adapter is not None,
        )


def _gate(
    cfg: TrainingRun, sampler: Engine, learner: Trainer, sequences: Sequence[Sequence[int]]
) -> Callable[[], Agreement]:
    """Chooses the gate by what the two sides compute with."""
    if "fp8" in (cfg.engine.dtype, cfg.trainer.dtype):
        return fp8_gate(sampler, learner, sequences, cfg.parity.tolerance, cfg.trainer.dtype, cfg.engine.dtype)
    coarser = max(UNIT[cfg.engine.dtype], UNIT[cfg.trainer.dtype])
    return gate(sampler, learner, sequences, cfg.parity.tolerance, coarser)


@contextmanager
def started(cfg: TrainingRun, run: Run) -> Iterator[Parts]:
    """Starts the parts of a run, brings them to where its newest checkpoint was, and hands them to the recipe."""
    if cfg.cluster.kind == "ray":
        number, ranks = cfg.engine.num_engines, cfg.trainer.num_ranks
        run.console.line(f"starting {number} engine(s) and {ranks} trainer rank(s) on Ray")
    if cfg.trainer.dtype in FLOAT8:
        run.console.line(f"trainer.dtype={cfg.trainer.dtype}: {run.task.architecture.float8_summary()}")
    with ExitStack() as stack:
        with leaving_at_once():
            console = run.console
            joined = stack.enter_context(parts(cfg, run.initial(), run.gate_sequences(), console.bar, console.line))
            run.restore(joined)
        yield joined
