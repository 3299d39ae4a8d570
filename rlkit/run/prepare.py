"""Reads and checks what a run needs before anything starts: data, tokenizer, model, reward."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import rewards
from rewards.model_score import Asked
from rlkit.config import GrpoRun, OnPolicyDistillRun, RewardConfig, SftRun, TrainingRun
from rlkit.data.demonstrations import Material, encode, read_material
from rlkit.data.documents import FIM_MARKS
from rlkit.data.mixture import Mixture
from rlkit.data.prompts import to_prompts
from rlkit.data.rows import Row, Split, read_rows
from rlkit.data.tokenizer import (
    copy_tokenizer,
    first_difference,
    load_tokenizer,
    same_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from rlkit.errors import UserError, named_by
from rlkit.model.architecture import Architecture
from rlkit.model.config import ScorerConfig
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.files.end_tokens import end_tokens
from rlkit.model.load import read_architecture
from rlkit.run.fit import check_engine_fit, check_fit
from rlkit.scoring.policy import check_room
from rlkit.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INITIAL = "initial"
"""The folder, inside the output folder, of the checkpoint that a run with a new model starts from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Holds what a run works on, read and checked."""

    prompts: tuple[Prompt, ...]
    """The prompts to train on; held-out questions are not among them."""
    demonstrations: Mixture
    """What SFT shows, and demonstrations that it never shows; empty in a recipe without SFT."""
    held_out: tuple[Prompt, ...]
    """Questions whose answers are measured; none in a run whose data asks none."""
    repeated: int
    """Rows that were left out because another row has the same question."""
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    checkpoint: Path | None
    """Where the model comes from; None means random weights."""


def prepare(cfg: TrainingRun) -> Task:
    """Reads and checks all that the run needs, without starting or writing anything.

    Raises:
        UserError: naming key, value and fix, for missing files and columns, empty data, prompts that do not fit,
            a checkpoint that is not one, a reward that does not load.
    """
    cfg.check_files()
    judge = rewards.load(cfg.reward.fn, **cfg.reward.kwargs)
    check_room(cfg.reward, cfg.engine.max_model_len)
    material = read_material(cfg.data, held_out=cfg.sft.held_out_every > 0) if isinstance(cfg, SftRun) else None
    split = read_rows(cfg.data) if material is None else material.asked
    if split is None and isinstance(cfg, GrpoRun):
        raise UserError(
            f"data.source={cfg.data.source!r} has rows without questions, and GRPO needs some; give such rows as part "
            "of data.mixture, and questions as data.source"
        )
    checkpoint = Path(cfg.model.path) if cfg.model.path else None
    if checkpoint is not None:
        architecture, tokenizer = read_checkpoint(checkpoint, cfg.model.kind)
    else:
        tokenizer, architecture = _new_model(cfg, split, material)
    check_fit(cfg, architecture)
    if isinstance(cfg, OnPolicyDistillRun):
        check_teacher(cfg, architecture, tokenizer)
    for model in cfg.reward.models:
        check_reward_model(model, tokenizer, cfg.engine.max_model_len)
    asked: Split[Row] = split if split is not None else Split(train=(), held_out=(), repeated=0)
    room, drop = cfg.engine.max_model_len - cfg.longest_completion, _drops(cfg)
    prompts = to_prompts(asked.train, tokenizer, cfg.data.instruction, room, drop=drop)
    held_out = to_prompts(asked.held_out, tokenizer, cfg.data.instruction, room, drop=drop)
    with closing(judge):
        if isinstance(cfg, GrpoRun) and cfg.algo.group_size > 1:
            check_reward(judge, cfg.reward, held_out, grouped=prompts)
        else:
            check_reward(judge, cfg.reward, [*prompts, *held_out])
    demonstrations = Mixture()
    if material is not None and isinstance(cfg, SftRun):
        ends = end_tokens(checkpoint) if checkpoint is not None else ()
        length = cfg.engine.max_model_len
        demonstrations = encode(material, tokenizer, cfg.sft, ends=ends, max_tokens=length, drop=drop)
    return Task(
        prompts=prompts,
        demonstrations=demonstrations,
        held_out=held_out,
        repeated=asked.repeated,
        tokenizer=tokenizer,
        architecture=architecture,
        checkpoint=checkpoint,
    )


def read_checkpoint(checkpoint: Path, kind: str) -> tuple[Architecture, PreTrainedTokenizerBase]:
    """Reads and checks config.json, headers and tokenizer of a language model that a run starts from.

    Raises UserError for a folder that holds none, which a reward model's is not.
    """
    architecture = read_architecture(checkpoint, kind)
    architecture.check_files()
    if isinstance(architecture, DeepseekArchitecture) and isinstance(architecture.config, ScorerConfig):
        raise UserError(
            f"model.path={checkpoint} is a reward model: it scores and cannot write; give the folder of a language "
            f"model, and the reward model as reward=model:{checkpoint}"
        )
    tokenizer = load_tokenizer(checkpoint)
    _check_vocabulary(checkpoint, tokenizer, architecture)
    return architecture, tokenizer


def check_teacher(cfg: OnPolicyDistillRun, student: Architecture, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError if the teacher cannot say how likely the student's tokens are: another tokenizer, too few ids.

    It is asked about the very ids that the student has drawn, so an id has to be the same token for both.
    """
    folder, key = Path(cfg.teacher.path), f"teacher.path={cfg.teacher.path}"
    teacher_run = cfg.teacher_run
    with named_by("teacher.path"):
        architecture, own = read_checkpoint(folder, teacher_run.model.kind)
        check_engine_fit(teacher_run, architecture)
    if difference := first_difference(tokenizer, own, ("the student", "the teacher")):
        raise UserError(
            f"{key}: its tokenizer is not the student's: {difference}. The teacher is asked for log-probs of the very "
            "ids that the student draws; take a teacher of the student's family, give a new student the teacher's "
            "tokenizer (model.tokenizer), or show the student the teacher's texts instead (recipes distill_generate "
            "and sft)"
        )
    if student.vocab_size > architecture.vocab_size:
        raise UserError(
            f"{key}: it has a vocab_size of {architecture.vocab_size}, the student one of {student.vocab_size}, which "
            "may draw ids that the teacher does not have; take a teacher with as many"
        )


def check_reward_model(asked: Asked, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    """Raises UserError if a folder holds no reward model that can judge what this tokenizer's model writes."""
    folder, key = Path(asked.folder), f"reward={asked.name}"
    architecture = read_architecture(folder, "deepseek")
    if not isinstance(architecture, DeepseekArchitecture) or not isinstance(architecture.config, ScorerConfig):
        raise UserError(
            f"{key}: the folder holds a language model, which has no head that scores; train one from it with 'rlkit "
            f"run reward_model model.path={folder}'"
        )
    architecture.check_files()
    if not same_tokenizer(load_tokenizer(folder), tokenizer):
        raise UserError(
            f"{key}: its tokenizer or chat template is not the policy's, whose tokens it is given as sampled; "
            "train the reward model from the checkpoint that the policy comes from"
        )
    if longest > architecture.max_position_embeddings:
        raise UserError(
            f"{key}: engine.max_model_len={longest} is more than its max_position_embeddings="
            f"{architecture.max_position_embeddings}; lower the first"
        )


def _drops(cfg: TrainingRun) -> bool:
    """Says whether rows that do not fit are left out; where nothing is shown, they are refused."""
    return isinstance(cfg, SftRun) and cfg.data.too_long == "drop"


def _new_model(
    cfg: TrainingRun, split: Split[Row] | None, material: Material | None
) -> tuple[PreTrainedTokenizerBase, Architecture]:
    """Takes a tokenizer, or trains one on all that the run reads, and fits the shape of the new model to it."""
    assert cfg.model.architecture is not None, "ModelConfig refuses this"
    tokenizer = _given_tokenizer(cfg) if cfg.model.tokenizer else _trained_tokenizer(cfg, split, material)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = replace(cfg.model.architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids)
    return tokenizer, DeepseekArchitecture(config=config)


def _given_tokenizer(cfg: TrainingRun) -> PreTrainedTokenizerBase:
    with named_by("model.tokenizer"):
        return load_tokenizer(Path(cfg.model.tokenizer))


def _trained_tokenizer(
    cfg: TrainingRun, split: Split[Row] | None, material: Material | None
) -> PreTrainedTokenizerBase:
    assert cfg.model.architecture is not None, "ModelConfig refuses this"
    if material is not None:
        texts, has_holes = material.texts, any(part.cfg.fim_rate for part in material.parts)
    else:
        rows = split.train if split is not None else ()
        texts, has_holes = [f"{cfg.data.instruction}\n{r.question} {r.solution} {r.answer}" for r in rows], False
    return train_tokenizer(texts, cfg.model.architecture.vocab_size, FIM_MARKS if has_holes else ())


def check_reward(
    judge: rewards.RewardFunction, cfg: RewardConfig, prompts: Sequence[Prompt], grouped: Sequence[Prompt] = ()
) -> None:
    """Raises UserError if the reward cannot judge these rows, or not within `reward.timeout`.

    `prompts` are answered once at a time, and `grouped` several times, so that their answers meet each other.
    """
    if judge.longest_s >= cfg.timeout:
        raise UserError(
            f"reward.timeout={cfg.timeout:g} is no more than the {judge.longest_s:g} seconds that reward {cfg.fn!r} "
            "allows a sample itself, so its verdict would come too late; raise reward.timeout, or lower the reward's "
            "own limit in reward.kwargs"
        )
    # Two stand for any group; a reward that sees one at a time would count rows twice.
    shown = [*grouped, *prompts, *(() if judge.independent else grouped)]
    judge.check_samples([rewards.Sample(prompt.text, "", meta=prompt.meta, step=0) for prompt in shown])


def initial_checkpoint(cfg: TrainingRun, task: Task) -> Path:
    """Returns the folder that trainer and engine load from; a new model is made there, from `seed`, on first call."""
    if task.checkpoint is not None:
        return task.checkpoint
    folder = cfg.output_dir / INITIAL
    if not folder.exists():
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            model = task.architecture.new_model()
        task.architecture.write(unfinished, model.checkpoint_weights(), "fp32")
        if cfg.model.tokenizer:
            copy_tokenizer(Path(cfg.model.tokenizer), unfinished)
        else:
            save_tokenizer(task.tokenizer, unfinished)
        unfinished.rename(folder)
    return folder


def _check_vocabulary(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, architecture: Architecture) -> None:
    """Refuses a tokenizer with ids that the model lacks, or whose end token does not end the model's completions."""
    if len(tokenizer) > architecture.vocab_size:
        raise UserError(
            f"model.path={checkpoint}: its tokenizer has {len(tokenizer)} tokens, its config.json a vocab_size of "
            f"{architecture.vocab_size}; use the tokenizer that belongs to the model"
        )
    ends = sorted(end_tokens(checkpoint))
    if tokenizer.eos_token_id not in ends:
        raise UserError(
            f"model.path={checkpoint}: its tokenizer ends texts with {tokenizer.eos_token!r} (id "
            f"{tokenizer.eos_token_id}), but its config.json says eos_token_id {ends}; add the id there"
        )
