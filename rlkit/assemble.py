"""Start the parts of a run, each alone and wherever the configuration puts it, and join them for a run that trains.

Every part is a context manager that needs no run folder: a recipe takes what it needs. A recipe that only samples and
judges starts no trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from torch import distributed

from rlkit.build import build_engine, build_trainer
from rlkit.cluster.reaper import reaped
from rlkit.config import DistillRun, EngineRun, LearningRun, OnPolicyDistillRun, RewardConfig, RunConfig, TrainingRun
from rlkit.data.tokenizer import load_tokenizer
from rlkit.distill.server import ServerTeacher
from rlkit.distill.teacher import EngineTeacher, Teacher
from rlkit.engine.base import Engine
from rlkit.engine.turns import TakingTurns
from rlkit.interrupt import leaving_at_once
from rlkit.model.files.folder import Checkpoint
from rlkit.model.files.sent import ADAPTER, form_for
from rlkit.parity import LENGTH, NUM_SEQUENCES, Agreement, check_served, fp8_gate, gate, gate_sequences
from rlkit.parts import Learning, Parts
from rlkit.quant.fp8 import FLOAT8
from rlkit.rollout.judging import RewardFn
from rlkit.run.progress import BaseProgress, Run
from rlkit.run.served import served_checkpoint
from rlkit.scoring.models import Copies, ModelScorer, RewardModel, closing_all
from rlkit.scoring.policy import PolicyJudge, asks_policy
from rlkit.scoring.pool import Scorer, build_reward
from rlkit.train.base import Trainer
from rlkit.train.rounding import UNIT
from rlkit.train.skipped import SKIPPED, WatchedTrainer
from rlkit.watch.progress import Progress, silent


@contextmanager
def engine(cfg: EngineRun, checkpoint: Path, progress: Progress = silent) -> Iterator[Engine]:
    """Starts what samples, from a checkpoint folder; `progress` shows how many rollouts are finished.

    On Ray the engines may still be loading when the block begins; the first call waits for them. In FP8, where
    log-probs are blind to wrong weights, an engine without a trainer is held against the files that it has loaded, and
    ParityError names what differs.
    """
    checkpoint = served_checkpoint(cfg, checkpoint)
    if cfg.cluster.kind == "local":
        yield build_engine(cfg.engine, checkpoint, cfg.model.kind, cfg.served_adapter, progress)
        return
    from rlkit.cluster.start import engines_on_ray, on_ray  # cluster=local runs without Ray

    with reaped(), on_ray(cfg, checkpoint), engines_on_ray(cfg, checkpoint, progress) as sampler:
        if cfg.engine.dtype == "fp8" and not isinstance(cfg, TrainingRun):
            check_served(sampler, checkpoint, _fixed_sequences(cfg, checkpoint))
        yield sampler


def _fixed_sequences(cfg: EngineRun, checkpoint: Path) -> Sequence[Sequence[int]]:
    length = min(LENGTH, cfg.engine.max_model_len - 1)
    vocabulary = Checkpoint.open(checkpoint).config.vocab_size
    return gate_sequences(vocabulary, NUM_SEQUENCES, length, cfg.seed, prompts=())


@contextmanager
def trainer(cfg: LearningRun, checkpoint: Path, say: Callable[[str], None] = print) -> Iterator[Trainer]:
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
def _bare_trainer(cfg: LearningRun, checkpoint: Path) -> Iterator[Trainer]:
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
def learning(cfg: LearningRun, run: BaseProgress[Learning], checkpoint: Path) -> Iterator[Learning]:
    """Starts what learns for a run that does not sample, and brings it to where the newest checkpoint was."""
    with ExitStack() as stack:
        with leaving_at_once():
            joined = Learning(trainer=stack.enter_context(trainer(cfg, checkpoint, run.console.line)))
            run.restore_trainer(joined)
        yield joined


@contextmanager
def reward(cfg: RewardConfig) -> Iterator[Scorer]:
    """Starts what judges, in plain processes beside this one; the reward models that it asks for are apart."""
    with reaped(), build_reward(cfg) as judge:
        yield judge


@contextmanager
def scored(cfg: RunConfig, checkpoint: Path, judge: Scorer) -> Iterator[RewardFn]:
    """Starts the reward models that the reward asks for, and puts them before it; without any it is the same."""
    asked = cfg.reward.models
    if not asked:
        yield judge
        return
    with ExitStack() as stack:
        if cfg.cluster.kind == "local":
            here = {one.key: Copies([RewardModel(one).score]) for one in asked}
            models = stack.enter_context(closing_all(here))
        else:
            from rlkit.cluster.start import on_ray, reward_models_on_ray

            stack.enter_context(reaped())
            stack.enter_context(on_ray(cfg, checkpoint))
            models = stack.enter_context(reward_models_on_ray(cfg))
        with closing(ModelScorer(models, judge)) as scorer:
            yield scorer


@contextmanager
def teacher(cfg: DistillRun, checkpoint: Path | None) -> Iterator[Teacher]:
    """Starts who answers the questions of a dataset: our engines on a checkpoint, or the way to a server."""
    sampling = cfg.sampling.seeded(cfg.seed)
    if checkpoint is None:
        yield ServerTeacher(cfg.teacher, sampling)
        return
    with engine(cfg, checkpoint.absolute()) as sampler:
        yield EngineTeacher(sampler, cfg.samples, sampling)


@contextmanager
def teaching(cfg: OnPolicyDistillRun, run: Run) -> Iterator[Engine]:
    """Starts the frozen engine that is asked for log-probs; before the student's parts, as ranks take what is left."""
    with ExitStack() as stack:
        with leaving_at_once():
            if cfg.cluster.kind == "ray":
                from rlkit.cluster.start import on_ray

                stack.enter_context(reaped())
                stack.enter_context(on_ray(cfg, run.initial()))  # whose weights are those that travel
            teacher_run = cfg.teacher_run
            sampler = stack.enter_context(engine(teacher_run, Path(cfg.teacher.path).absolute()))
        yield sampler


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
        scored(cfg, checkpoint, judge) as judges,
        trainer(cfg, checkpoint, say) as learner,
    ):
        if asks_policy(cfg.reward):
            sampler = TakingTurns(sampler)
            judge.judged_by(PolicyJudge(sampler, load_tokenizer(checkpoint), cfg.engine.max_model_len))
        yield Parts(
            engine=sampler,
            trainer=learner,
            reward=judges,
            gate=_gate(cfg, sampler, learner, sequences),
            form=ADAPTER if cfg.served_adapter else form_for(cfg.trainer.dtype, cfg.engine.dtype),
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
        run.console.line(f"starting {cfg.demand} on Ray")
    if cfg.trainer.dtype in FLOAT8:
        run.console.line(f"trainer.dtype={cfg.trainer.dtype}: {run.task.architecture.float8_summary()}")
    with ExitStack() as stack:
        with leaving_at_once():
            console = run.console
            joined = stack.enter_context(parts(cfg, run.initial(), run.gate_sequences(), console.bar, console.line))
            run.restore(joined)
        yield joined
