"""What both sides of grpo_vs_trl do in a step: model, prompts, sizes, and the settings that say so to each side."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.data.rows import read_rows
from rlkit.data.tokenizer import train_tokenizer
from rlkit.model import DeepseekV3, DeepseekV3Config

END = 1
ARCHITECTURE = DeepseekV3Config(
    vocab_size=512,
    hidden_size=256,
    num_hidden_layers=4,
    first_k_dense_replace=1,
    intermediate_size=512,
    moe_intermediate_size=256,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    num_attention_heads=8,
    q_lora_rank=96,
    kv_lora_rank=512,
    qk_nope_head_dim=32,
    qk_rope_head_dim=64,
    v_head_dim=32,
    max_position_embeddings=4096,
    bos_token_id=0,
    eos_token_id=END,
    pad_token_id=2,
)
TRL_CHOICES = {"attn_implementation": "sdpa", "experts_implementation": "grouped_mm"}
"""transformers' implementations for the TRL side: the fastest of those tried (see RESULTS.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What both sides do in a step; everything that is not here is the same by construction."""

    new_tokens: int
    """Of every rollout, exactly."""
    num_prompts: int = 8
    group_size: int = 8
    kl_coef: float = 0.001
    lr: float = 1e-6
    beta2: float = 0.95
    grad_clip: float = 1.0
    seed: int = 0

    @property
    def tokens(self) -> int:
        """New tokens of a step."""
        return self.num_prompts * self.group_size * self.new_tokens


def rlkit_overrides(job: Job, folder: Path, steps: int, extra: Sequence[str] = ()) -> list[str]:
    """Settings of `recipes.grpo` for the job; `extra` wins."""
    return [
        f"output_dir={folder / 'rlkit'}",
        f"model.path={folder / 'model'}",
        f"data={folder / 'questions.jsonl'}",
        "data.answer_column=''",
        f"data.train_size={job.num_prompts}",
        "data.eval_size=1",
        f"reward={Path(__file__).with_name('spread.py')}:spread",
        "cluster=ray",
        "engine=vllm",
        # One process per core, each with one thread: much of a step is Python and small products, which threads do not
        # speed up.
        "engine.num_engines=2",
        "engine.threads=1",
        f"engine.max_model_len={job.new_tokens + 32}",
        "trainer=deepspeed",
        "trainer.num_ranks=2",
        "trainer.threads=1",
        f"trainer.beta2={job.beta2}",
        f"trainer.grad_clip={job.grad_clip}",
        f"algo.prompts_per_step={job.num_prompts}",
        f"algo.group_size={job.group_size}",
        f"algo.sampling.max_new_tokens={job.new_tokens}",
        f"algo.loss.kl_coef={job.kl_coef}",
        f"algo.schedule.lr={job.lr}",
        "algo.schedule.warmup_steps=0",
        f"algo.steps={steps + 1}",  # the last step takes a checkpoint, so the run ends before it
        f"evaluation.sampling.max_new_tokens={job.new_tokens}",
        "checkpoint.every=0",
        f"seed={job.seed}",
        *extra,
    ]


def trl_job(job: Job, folder: Path, steps: int, prompts: Sequence[str]) -> dict[str, Any]:
    """What `trl_side.py` reads: the model, the prompts as text, and the arguments of TRL's GRPOConfig."""
    rollouts = job.num_prompts * job.group_size
    arguments = {
        "output_dir": str(folder / "trl"),
        "max_steps": steps + 1,
        "per_device_train_batch_size": rollouts,
        "gradient_accumulation_steps": 1,
        "num_generations": job.group_size,
        "max_completion_length": job.new_tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "beta": job.kl_coef,
        "loss_type": "dapo",  # every token of the batch counts alike, as algo.aggregate=token
        "scale_rewards": "group",
        "learning_rate": job.lr,
        "lr_scheduler_type": "constant",
        "adam_beta2": job.beta2,
        "weight_decay": 0.0,
        "max_grad_norm": job.grad_clip,
        "router_aux_loss_coef": 0.0,
        "shuffle_dataset": False,
        "seed": job.seed,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,  # rlkit writes its numbers every step, too
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32", **TRL_CHOICES},
    }
    return {
        "model": str(folder / "model"),
        "prompts": list(prompts),
        "threads": os.cpu_count(),
        "arguments": arguments,
    }


def write_inputs(job: Job, folder: Path) -> None:
    """Write the checkpoint with its tokenizer, and the questions, one of them held out."""
    folder.mkdir(parents=True)
    gsm8k = load_config("grpo", GrpoRun, ["data=gsm8k", "data.train_size=1000", "data.eval_size=1"]).data
    tokenizer = train_tokenizer([row.question for row in read_rows(gsm8k).train], ARCHITECTURE.vocab_size)
    assert len(tokenizer) == ARCHITECTURE.vocab_size and tokenizer.eos_token_id == ARCHITECTURE.eos_token_id
    torch.manual_seed(job.seed)
    model = DeepseekV3(ARCHITECTURE)
    forbid(model, END)
    model.save_checkpoint(folder / "model", dtype="fp32")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(job.seed)
    questions = [" + ".join(str(draw.randint(10, 99)) for _ in range(3)) for _ in range(job.num_prompts + 1)]
    lines = [json.dumps({"question": question}) for question in questions]
    (folder / "questions.jsonl").write_text("\n".join(lines))


@torch.no_grad()
def forbid(model: DeepseekV3, token: int) -> None:
    """Give one token a logit below -100 wherever it stands, so that sampling never draws it.

    Dimension 0 of the residual stream becomes a constant that no block reads or writes, and only this token's row of
    the head reads it.
    """
    model.model.embed_tokens.weight[:, 0] = 0.5
    for block in model.model.blocks():
        block.input_layernorm.weight[0] = 0
        block.post_attention_layernorm.weight[0] = 0
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
            weight.select(-2, 0).zero_()  # rows are outputs; experts are stacked before them
    model.lm_head.weight[:, 0] = 0
    model.lm_head.weight[token, 0] = -100
