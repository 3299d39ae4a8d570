"""The TRL side of grpo_vs_trl: TRL's own trainer, unchanged but for clocks, takes one step per line on standard input.

Runs with the Python of .trl-venv and imports nothing of rlkit. Its argument is the JSON file that
`grpo_vs_trl.trl_job` makes. Answers with JSON lines: one when it is ready, one after each step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import accelerate
import torch
import transformers
import trl
from datasets import Dataset
from spread import spread
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class TimedTrainer(GRPOTrainer):
    """`GRPOTrainer` that notes how long it generates and scores, and how many tokens came out."""

    seconds: dict[str, float]
    tokens: int

    def _generate(self, prompts: list) -> Any:
        start = time.perf_counter()
        output = super()._generate(prompts)
        self.seconds["sample"] = time.perf_counter() - start
        self.tokens = sum(len(completion) for completion in output[1])
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        rewards = super()._calculate_rewards(*args, **kwargs)
        self.seconds["score"] = time.perf_counter() - start
        return rewards


class StepByStep(TrainerCallback):
    """Waits before each step for a line, and reports the step when the trainer comes back for the next one.

    A step's `seconds` are those from on_step_begin to on_step_end; `outside` (data loading, logging, callbacks) is the
    rest of the way to the next on_step_begin. Waiting is in neither.
    """

    def __init__(self, answers: TextIO, hello: dict[str, Any]) -> None:
        self.answers, self.hello = answers, hello
        self.trainer: TimedTrainer | None = None
        self.begin = self.end = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Report what is finished, then wait; the end of the input ends the process."""
        assert self.trainer is not None
        outside = time.perf_counter() - self.end
        if self.end:
            sample, score = self.trainer.seconds["sample"], self.trainer.seconds["score"]
            seconds = self.end - self.begin
            phases = {"sample": sample, "score": score, "train": seconds - sample - score, "outside": outside}
            grad_norm = self.trainer.state.log_history[-1]["grad_norm"]
            self._answer(
                {"seconds": seconds + outside, "phases": phases, "tokens": self.trainer.tokens, "grad_norm": grad_norm}
            )
        else:
            self._answer(self.hello)
        if not sys.stdin.readline():
            raise SystemExit
        self.trainer.seconds = {}
        self.begin = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser has stepped."""
        self.end = time.perf_counter()

    def _answer(self, values: dict[str, Any]) -> None:
        print(json.dumps(values), file=self.answers, flush=True)


def main() -> None:
    """Build the trainer and let it run."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what TRL prints goes to stderr
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    versions = {module.__name__: module.__version__ for module in (torch, transformers, accelerate, trl)}
    prompt_ids = tokenizer(job["prompts"])["input_ids"]
    clock = StepByStep(answers, {"versions": versions, "prompt_ids": prompt_ids})
    trainer = TimedTrainer(
        model=job["model"],
        reward_funcs=[spread],
        args=GRPOConfig(**job["arguments"]),
        # The same prompts in every step; long enough that no epoch ends during the run.
        train_dataset=Dataset.from_dict({"prompt": job["prompts"] * job["arguments"]["max_steps"]}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    assert trainer.ref_model is not None and {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    clock.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
