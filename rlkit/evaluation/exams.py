"""A suite as it is put to one model: its prompts in the chat template, its sampling, and what decides a completion."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import rewards
from rlkit.checks import MOST
from rlkit.config import EvalRun, RewardConfig, SamplingConfig
from rlkit.data.prompts import to_prompts
from rlkit.errors import UserError
from rlkit.evaluation.suites import Suite
from rlkit.run.fit import check_engine_fit
from rlkit.run.inputs import MODEL_FILES, digest
from rlkit.run.machine import check_engine_machine, check_place
from rlkit.run.prepare import check_reward, read_checkpoint
from rlkit.types import Prompt, Sampling

Settings = Mapping[str, str | int | float]
"""What decides a completion, under names that a message can use."""
MODEL_FILE = "model "
"""What stands before the name of a file of the model's folder in the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """Holds the prompts of a suite for one model, and how they are answered."""

    suite: Suite
    prompts: tuple[Prompt, ...]
    """Those that are asked: the first `size` of the suite."""
    sampling: Sampling
    settings: Settings
    shortened: bool
    """Whether the model's context has less room than the suite wants for a completion."""

    @property
    def fingerprint(self) -> str:
        """Returns a short name of the settings, which every stored completion carries."""
        return fingerprint(self.settings)


def fingerprint(settings: Settings) -> str:
    """Returns a short name of some settings."""
    return blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def write_exams(suites: Sequence[Suite], cfg: EvalRun) -> tuple[EvalRun, tuple[Exam, ...]]:
    """Puts every suite into the model's chat template, and checks model, engine, rewards and machine; starts nothing.

    Also returns the configuration with the context that the longest prompt and its completion need. Raises UserError,
    naming key, value and fix, for what cannot work.
    """
    checkpoint = Path(cfg.model.path)
    architecture, tokenizer = read_checkpoint(checkpoint, cfg.model.kind)
    # RoPE of some models changes beyond its exact positions for a whole batch: no evaluation goes there.
    reach = min(cfg.engine.max_model_len, architecture.max_position_embeddings, architecture.exact_positions)
    model = _digests(checkpoint)
    exams, longest = [], 0
    for suite in suites:
        prompts = to_prompts(suite.rows, tokenizer, suite.about.instruction, MOST)
        sampling, shortened = _fitting(cfg, suite, prompts, reach)
        longest = max(longest, max(len(prompt.tokens) for prompt in prompts) + sampling.max_new_tokens)
        with closing(rewards.load(suite.reward.fn, **suite.reward.kwargs)) as judge:
            check_reward(judge, suite.reward, prompts)
        exams.append(
            Exam(
                suite=suite,
                prompts=prompts[: len(suite.asked(cfg.size))],
                sampling=sampling.seeded(cfg.seed),
                settings=_settings(cfg, suite, sampling) | model,
                shortened=shortened,
            )
        )
    cfg = replace(cfg, engine=replace(cfg.engine, max_model_len=longest))
    check_engine_fit(cfg, architecture)
    check_place(cfg, weights=architecture.size().parameters)
    check_engine_machine(cfg)
    return cfg, tuple(exams)


def model_of(settings: Settings) -> Settings:
    """Returns those of the settings that say which model it is."""
    return {key: value for key, value in settings.items() if key.startswith((MODEL_FILE, "model."))}


def stated(cfg: EvalRun, suite: Suite, stored: Settings, given: Collection[str]) -> Settings:
    """Returns stored settings of a suite with what a command states: the keys in `given`, as "seed", "engine"."""
    settings = _settings(cfg, suite, cfg.sampling.over(suite.about.sampling))
    if cfg.sampling.max_new_tokens is None:  # the suite's own length may have been cut
        settings.pop("sampling.max_new_tokens")
    now = {key: value for key, value in settings.items() if any(f"{key}.".startswith(f"{one}.") for one in given)}
    if "model.path" not in given:
        return {**stored, **now}
    others = {key: value for key, value in stored.items() if not key.startswith(MODEL_FILE)}
    return {**others, **now, **_digests(Path(cfg.model.path))}


def reward_name(cfg: RewardConfig) -> str:
    """Names a reward with its settings, for people: "math {'extraction': 'lenient'}"."""
    return f"{cfg.fn} {cfg.kwargs}" if cfg.kwargs else cfg.fn


def _fitting(cfg: EvalRun, suite: Suite, prompts: Sequence[Prompt], reach: int) -> tuple[SamplingConfig, bool]:
    """Returns the sampling of a suite with completions that fit behind its longest prompt, and whether that cut them.

    What the user asks for is not cut but refused. The longest prompt is that of the whole suite, so that `size` does
    not change how problems are answered.
    """
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    room = reach - len(longest.tokens)
    wanted = cfg.sampling.over(suite.about.sampling)
    asked = cfg.sampling.max_new_tokens
    if room < 1 or (asked is not None and asked > room):
        fix = "use a model with a longer context" if room < 1 else f"set sampling.max_new_tokens={room}, or less"
        raise UserError(
            f"suite={suite.name}: the prompt of {longest.id} has {len(longest.tokens)} tokens, and the model takes "
            f"{reach} with its completion (sampling.max_new_tokens={wanted.max_new_tokens}); {fix}"
        )
    return replace(wanted, max_new_tokens=min(wanted.max_new_tokens, room)), wanted.max_new_tokens > room


def _settings(cfg: EvalRun, suite: Suite, sampling: SamplingConfig) -> dict[str, str | int | float]:
    return {
        "seed": cfg.seed,
        "sampling.temperature": sampling.temperature,
        "sampling.top_p": sampling.top_p,
        "sampling.max_new_tokens": sampling.max_new_tokens,
        "engine.kind": cfg.engine.kind,
        "engine.dtype": cfg.engine.dtype,
        "model.kind": cfg.model.kind,
        "problems": suite.digest,
        "prompt_column": suite.about.prompt_column,
        "instruction": suite.about.instruction,
    }


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in MODEL_FILES)
    return {f"{MODEL_FILE}{file.name}": digest(file, sampled=True) for file in files}
