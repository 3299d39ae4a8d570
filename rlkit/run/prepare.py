"""Everything that can go wrong before anything starts: data, tokenizer, model, reward."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import rewards
from rlkit.config import RewardConfig, TrainingRun
from rlkit.data.prompts import Demonstration, to_demonstrations, to_prompts
from rlkit.data.rows import read_rows
from rlkit.data.tokenizer import load_tokenizer, train_tokenizer
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.config import CONFIG
from rlkit.model.files.folder import checkpoint_files
from rlkit.model.files.hf_folder import HfArchitecture
from rlkit.model.files.names import HEAD, published_names
from rlkit.model.load import Architecture, empty_model, read_architecture
from rlkit.model.lora import choose_targets
from rlkit.model.routing import RULES
from rlkit.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    architecture: Architecture
    checkpoint: Path | None
    """Where the model comes from; None = random weights."""


def prepare(cfg: TrainingRun) -> Task:
    """Read and check all that the run needs, without starting or writing anything.

    Raises:
        ValueError: naming key, value and fix, for missing files and columns, empty data, prompts that do not fit,
            a checkpoint that is not one, a reward that does not load.
    """
    cfg.check_files()
    judge = rewards.load(cfg.reward.fn, **cfg.reward.kwargs)
    split = read_rows(cfg.data)
    checkpoint = Path(cfg.model.path) if cfg.model.path else None
    if checkpoint is not None:
        architecture = read_architecture(checkpoint, cfg.model.kind)
        if isinstance(architecture, HfArchitecture):
            architecture.check_files()
        else:
            _check_names(checkpoint, architecture)
        tokenizer = load_tokenizer(checkpoint)
        _check_vocabulary(checkpoint, tokenizer, architecture)
    else:
        assert cfg.model.architecture is not None, "ModelConfig refuses this"
        texts = [f"{cfg.data.instruction}\n{row.question} {row.solution} {row.answer}" for row in split.train]
        tokenizer = train_tokenizer(texts, cfg.model.architecture.vocab_size)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        architecture = replace(
            cfg.model.architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids
        )
    _check_fit(cfg, architecture)
    _check_balance(cfg, architecture)
    if cfg.trainer.lora is not None:
        choose_targets(empty_model(architecture), cfg.trainer.lora.targets)
    room = cfg.engine.max_model_len - cfg.longest_completion
    prompts = to_prompts(split.train, tokenizer, cfg.data.instruction, room)
    held_out = to_prompts(split.held_out, tokenizer, cfg.data.instruction, room)
    with closing(judge):
        check_reward(judge, cfg.reward, [*prompts, *held_out])
    demonstrations: Sequence[Demonstration] = ()
    if cfg.think_share is not None:
        demonstrations = to_demonstrations(
            split.train, tokenizer, cfg.data.instruction, cfg.think_share, cfg.data.seed, cfg.engine.max_model_len
        )
    return Task(
        prompts=prompts,
        demonstrations=tuple(demonstrations),
        held_out=held_out,
        tokenizer=tokenizer,
        architecture=architecture,
        checkpoint=checkpoint,
    )


def check_reward(judge: rewards.RewardFunction, cfg: RewardConfig, prompts: Sequence[Prompt]) -> None:
    """ValueError if the reward cannot judge these rows, or not within `reward.timeout`."""
    if judge.longest_s >= cfg.timeout:
        raise ValueError(
            f"reward.timeout={cfg.timeout:g} is no more than the {judge.longest_s:g} seconds that reward {cfg.fn!r} "
            "allows a sample itself, so its verdict would come too late; raise reward.timeout, or lower the reward's "
            "own limit in reward.kwargs"
        )
    judge.check_samples([rewards.Sample(prompt.text, "", meta=prompt.meta, step=0) for prompt in prompts])


def initial_checkpoint(cfg: TrainingRun, task: Task) -> Path:
    """The folder that trainer and engine load from; a new model is made there, from `seed`, on first call."""
    if task.checkpoint is not None:
        return task.checkpoint
    assert isinstance(task.architecture, DeepseekV3Config), "only ours starts from random weights"
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
    unknown = found.keys() - wanted.keys() - ({HEAD} if architecture.tie_word_embeddings else set())
    for what, names in (("is missing", missing), ("is not known", unknown)):
        if names:
            name = min(names)
            raise ValueError(
                f"model.path={checkpoint}: tensor {name} {what} ({len(names)} such); its config.json describes another "
                "model, or a file is incomplete"
            )


def _check_vocabulary(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, architecture: Architecture) -> None:
    """Refuse a tokenizer with ids that the model lacks, or whose end token does not end the model's completions."""
    if len(tokenizer) > architecture.vocab_size:
        raise ValueError(
            f"model.path={checkpoint}: its tokenizer has {len(tokenizer)} tokens, its config.json a vocab_size of "
            f"{architecture.vocab_size}; use the tokenizer that belongs to the model"
        )
    end = [architecture.eos_token_id] if isinstance(architecture, DeepseekV3Config) else sorted(architecture.end_tokens)
    if tokenizer.eos_token_id not in end:
        raise ValueError(
            f"model.path={checkpoint}: its tokenizer ends texts with {tokenizer.eos_token!r} (id "
            f"{tokenizer.eos_token_id}), but its config.json says eos_token_id {end}; add the id there"
        )


def _check_fit(cfg: TrainingRun, architecture: Architecture) -> None:
    """Refuse a model that the engine cannot run, in words; the engine itself would fail deep inside."""
    ours = isinstance(architecture, DeepseekV3Config)
    if cfg.engine.kind == "vllm" and not ours:
        _check_vllm(architecture)
    if cfg.engine.kind == "vllm" and ours and not torch.cuda.is_available():
        for key in ("hidden_size", "moe_intermediate_size"):
            size = getattr(architecture, key)
            if size % VLLM_CPU_MULTIPLE:
                raise ValueError(
                    f"model.architecture.{key}={size}: vLLM's experts on the CPU need a multiple of "
                    f"{VLLM_CPU_MULTIPLE}; change it, or use engine=torch"
                )
    drafted = cfg.engine.speculative_tokens
    modules = architecture.num_nextn_predict_layers if isinstance(architecture, DeepseekV3Config) else 0
    if drafted and not modules:
        raise ValueError(
            f"engine.speculative_tokens={drafted}: the model has no module that could draft them "
            "(num_nextn_predict_layers=0); set it to 0, or for a new model "
            "model.architecture.num_nextn_predict_layers to 1"
        )
    if drafted and cfg.engine.kind == "vllm" and ours and architecture.scoring_func != "sigmoid":
        raise ValueError(
            f"engine.speculative_tokens={drafted}: vLLM has no MTP for DeepSeek-V2, which scoring_func="
            f"{architecture.scoring_func} stands for; set it to 0, or use engine=torch"
        )
    if drafted and cfg.engine.kind == "vllm" and drafted > modules and drafted % modules:
        raise ValueError(
            f"engine.speculative_tokens={drafted}: vLLM takes at most num_nextn_predict_layers={modules} or a multiple "
            "of it; change it, or use engine=torch"
        )
    if not ours and architecture.exact_positions() < cfg.engine.max_model_len <= architecture.max_position_embeddings:
        raise ValueError(
            f"engine.max_model_len={cfg.engine.max_model_len}: the RoPE of this model changes for a whole batch when "
            f"one sample in it is longer than {architecture.exact_positions()} tokens; set engine.max_model_len to that"
        )
    if cfg.engine.max_model_len > architecture.max_position_embeddings:
        raise ValueError(
            f"engine.max_model_len={cfg.engine.max_model_len} is more than the model's max_position_embeddings="
            f"{architecture.max_position_embeddings}; lower the first"
        )


def _check_balance(cfg: TrainingRun, architecture: Architecture) -> None:
    """Refuse to balance what is not there."""
    trainer, where = cfg.trainer, f"model.path={cfg.model.path}" if cfg.model.path else "model.architecture"
    keys = [key for key in ("bias_update_speed", "balance_coef") if getattr(trainer, key)]
    if not keys:
        return
    key, value = keys[0], getattr(trainer, keys[0])
    if isinstance(architecture, HfArchitecture):
        raise ValueError(f"trainer.{key}={value}: model=hf leaves the routers of transformers as they are; set it to 0")
    if not architecture.has_experts and not architecture.num_nextn_predict_layers:
        raise ValueError(f"trainer.{key}={value}: {where} has no layer with routed experts; set it to 0")
    if trainer.bias_update_speed and not RULES[architecture.scoring_func].has_bias:
        raise ValueError(
            f"trainer.bias_update_speed={trainer.bias_update_speed}: {where} has scoring_func="
            f"{architecture.scoring_func}, a router without a bias; set it to 0, and trainer.balance_coef above 0"
        )


def _check_vllm(architecture: HfArchitecture) -> None:
    """vLLM builds DeepSeek's router with its bias only when config.json says these words, which transformers drops."""
    file = architecture.folder / CONFIG
    if architecture.raw["model_type"] == "deepseek_v3" and architecture.raw.get("topk_method") != "noaux_tc":
        raise ValueError(
            f"{file}: topk_method={architecture.raw.get('topk_method')!r}, without which vLLM does not load the "
            'router\'s bias; write "topk_method": "noaux_tc", "scoring_func": "sigmoid" into it, or use engine=torch'
        )
