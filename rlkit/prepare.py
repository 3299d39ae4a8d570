"""Everything that can go wrong before anything starts: data, tokenizer, model, reward."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import rewards
from rlkit.config import AlgoConfig, GrpoRun, RunConfig, SftRun
from rlkit.data.prompts import Demonstration, to_demonstrations, to_prompts
from rlkit.data.rows import read_rows
from rlkit.data.tokenizer import train_tokenizer
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.checkpoint import checkpoint_files
from rlkit.model.weights import published_names
from rlkit.types import Prompt

INITIAL = "initial"
"""Folder of the checkpoint that a run starts from, inside its output folder, when the model is new."""
VLLM_CPU_MULTIPLE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a run works on, read and checked."""

    prompts: tuple[Prompt, ...]
    """To train on; held-out questions are not among them."""
    demonstrations: tuple[Demonstration, ...]
    """The same rows with the completions to imitate; empty in a recipe without SFT."""
    held_out: tuple[Prompt, ...]
    tokenizer: PreTrainedTokenizerBase
    architecture: DeepseekV3Config
    checkpoint: Path | None
    """Where the model comes from; None = random weights."""


def prepare(cfg: RunConfig) -> Task:
    """Read and check all that the run needs, without starting or writing anything.

    Raises:
        ValueError: naming key, value and fix, for missing files and columns, empty data, prompts that do not fit,
            a checkpoint that is not one, a reward that does not load.
    """
    rewards.load(cfg.reward.fn, **cfg.reward.kwargs).close()
    split = read_rows(cfg.data)
    checkpoint = Path(cfg.model.path) if cfg.model.path else None
    if checkpoint is not None:
        architecture = DeepseekV3Config.from_folder(checkpoint)
        _check_names(checkpoint, architecture)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    else:
        texts = [f"{cfg.data.instruction}\n{row.question} {row.solution} {row.answer}" for row in split.train]
        tokenizer = train_tokenizer(texts, cfg.model.architecture.vocab_size)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        architecture = replace(
            cfg.model.architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids
        )
    _check_fit(cfg, architecture)
    room = cfg.engine.max_model_len - longest_completion(cfg)
    demonstrations: Sequence[Demonstration] = ()
    if isinstance(cfg, SftRun):
        demonstrations = to_demonstrations(
            split.train, tokenizer, cfg.data.instruction, cfg.sft.think_share, cfg.data.seed, cfg.engine.max_model_len
        )
    return Task(
        prompts=to_prompts(split.train, tokenizer, cfg.data.instruction, room),
        demonstrations=tuple(demonstrations),
        held_out=to_prompts(split.held_out, tokenizer, cfg.data.instruction, room),
        tokenizer=tokenizer,
        architecture=architecture,
        checkpoint=checkpoint,
    )


def longest_completion(cfg: RunConfig) -> int:
    """Tokens that any stage may sample after a prompt."""
    algo: AlgoConfig | None = cfg.algo if isinstance(cfg, GrpoRun) else None
    return max(cfg.evaluation.sampling.max_new_tokens, algo.sampling.max_new_tokens if algo else 0)


def initial_checkpoint(cfg: RunConfig, task: Task) -> Path:
    """The folder that trainer and engine load from; a new model is made there, from `seed`, on first call."""
    if task.checkpoint is not None:
        return task.checkpoint
    folder = cfg.output_dir / INITIAL
    if not folder.exists():
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            model = DeepseekV3(task.architecture)
        model.save_checkpoint(unfinished, dtype="fp32")
        task.tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def _check_names(checkpoint: Path, architecture: DeepseekV3Config) -> None:
    """Read the headers of the weight files: every tensor of the architecture must be there."""
    found, wanted = checkpoint_files(checkpoint), published_names(architecture)
    missing = {name for name, place in wanted.items() if not place.copy} - found.keys()
    for what, names in (("is missing", missing), ("is not known", found.keys() - wanted.keys())):
        if names:
            name = min(names)
            raise ValueError(
                f"model.path={checkpoint}: tensor {name} {what} ({len(names)} such); its config.json describes another "
                "model, or a file is incomplete"
            )


def _check_fit(cfg: RunConfig, architecture: DeepseekV3Config) -> None:
    """Refuse a model that the engine cannot run, in words; the engine itself would fail deep inside."""
    if cfg.engine.kind == "vllm" and not torch.cuda.is_available():
        for key in ("hidden_size", "moe_intermediate_size"):
            size = getattr(architecture, key)
            if size % VLLM_CPU_MULTIPLE:
                raise ValueError(
                    f"model.architecture.{key}={size}: vLLM's experts on the CPU need a multiple of "
                    f"{VLLM_CPU_MULTIPLE}; change it, or use engine=torch"
                )
    drafted, modules = cfg.engine.speculative_tokens, architecture.num_nextn_predict_layers
    if drafted and not modules:
        raise ValueError(
            f"engine.speculative_tokens={drafted}: the model has no module that could draft them "
            "(num_nextn_predict_layers=0); set it to 0, or for a new model "
            "model.architecture.num_nextn_predict_layers to 1"
        )
    if drafted and cfg.engine.kind == "vllm" and drafted > modules and drafted % modules:
        raise ValueError(
            f"engine.speculative_tokens={drafted}: vLLM takes at most num_nextn_predict_layers={modules} or a multiple "
            "of it; change it, or use engine=torch"
        )
    if cfg.engine.max_model_len > architecture.max_position_embeddings:
        raise ValueError(
            f"engine.max_model_len={cfg.engine.max_model_len} is more than the model's max_position_embeddings="
            f"{architecture.max_position_embeddings}; lower the first"
        )
