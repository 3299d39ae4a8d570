"""Small real runs for the end-to-end tests: a DeepSeek-V3 of 60 thousand parameters on sums of two numbers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file
from torch import Tensor

from rlkit.cluster.reaper import reaped
from rlkit.cluster.start import on_ray
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config

TINY = [
    "data.train_size=200",
    "data.eval_size=20",
    "data.tasks.chain_sum={min_terms: 3, max_terms: 3, min_digits: 1, max_digits: 1, bare: true}",
    "model.architecture.hidden_size=64",
    "model.architecture.num_hidden_layers=2",
    "model.architecture.intermediate_size=64",
    "model.architecture.moe_intermediate_size=32",
    "engine.max_model_len=64",
    "engine.memory=0.1",
    "evaluation.sampling.max_new_tokens=24",
    "algo.sampling.max_new_tokens=24",
    "algo.prompts_per_step=4",
    "algo.group_size=4",
    "algo.steps=4",
    "sft.steps=4",
    "sft.batch_size=16",
    "logging.tensorboard=false",
    "engine.threads=1",  # too small to share
    "trainer.threads=1",
]
GRPO_ONLY = [word for word in TINY if not word.startswith("sft.")]
ALL_CORES = ["engine.threads=0", "trainer.threads=0"]
"""The default."""
LOCAL = ["cluster=local", "engine=torch", "trainer=torch"]
SPREAD_REWARD = """
def spread(completion: str, answer: str) -> float:
    # Differs between almost any two completions, so that groups of an untrained model are not flat.
    return (sum(completion.encode()) % 97) / 97
"""


HIDING = (
    *("tokenizers", "safetensors", "torch", "numpy", "hydra", "yaml", "pydantic", "omegaconf", "transformers", "ray"),
    *("datasets", "reasoning_gym", "tqdm", "vllm", "deepspeed", "math_verify", "sandbox", "rewards", "rlkit"),
    *("json", "logging", "random", "queue", "statistics", "code"),
)


def hide_modules(folder: Path) -> None:
    """Fill a folder with files and folders named like what a run imports; one that is imported ends the run."""
    for name in HIDING:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} was imported from the current folder')\n")
    for name in ("configs", "data", "wandb", "checkpoints", "model"):
        (folder / name).mkdir()
    (folder / "configs" / "grpo.yaml").write_text("seed: 99\n")


def start(
    recipe: str, *overrides: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Start a recipe as a user does, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", f"recipes.{recipe}", *overrides],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(recipe: str, *overrides: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a recipe to its end and return what it printed."""
    process = start(recipe, *overrides, env=env, cwd=cwd)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def finish_here(recipe: str, *overrides: str, code: int = 0) -> str:
    """The same in this process, which has loaded the libraries once for all runs; `code` is that of its end."""
    printed, ended = io.StringIO(), 0
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            import_module(f"recipes.{recipe}").main([*overrides])
        except SystemExit as end:
            ended = end.code
    assert ended == code, printed.getvalue()
    return printed.getvalue()


def killed_by(recipe: str, *overrides: str, env: dict[str, str]) -> int:
    """Run a recipe in a process of its own and return how it ended: the signal, negative."""
    process = start(recipe, *overrides, env=env)
    process.communicate()
    return process.returncode


@contextmanager
def one_ray() -> Iterator[None]:
    """A Ray for all runs of the block in this process, each of which would start one and end it again."""
    words = ["trainer.num_ranks=4", "engine.num_engines=2"]
    with TemporaryDirectory() as no_weights, reaped(), on_ray(load_config("grpo", GrpoRun, words), Path(no_weights)):
        yield


def final_weights(folder: Path, model: str = "model") -> dict[str, Tensor]:
    """The trained model of a run, or the one it began with."""
    return load_file(folder / model / "model.safetensors")
