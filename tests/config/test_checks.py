"""Every number of every recipe is inside its bounds or refused: NaN, infinities, negative and endless ones."""

from __future__ import annotations

import math
import re
from copy import deepcopy
from typing import Any, get_args

import pytest
import torch

from rlkit.algo import GrpoLoss, Schedule
from rlkit.checks import LARGEST, MOST, is_number, is_whole, number, seed, shown, whole
from rlkit.config import RunConfig
from rlkit.config.compose import ConfigError, compose_dict, known_keys, load_config, parse
from rlkit.errors import UserError
from rlkit.model.config import DeepseekV3Config, Yarn
from tests.config.recipes import RECIPES

LORA = "trainer.lora={rank: 4, alpha: 8}"
YARN = "model.architecture.rope_scaling={factor: 40, original_max_position_embeddings: 4096}"
MIXTURE = "data.mixture=[{source: a.jsonl, text_column: text, fim_rate: 0.1}]"
BAD = [math.nan, math.inf, -math.inf, 1e300, -0.5, -1, 10**27, -(10**27), 10**400, True]
ALLOWED = {
    ("data.train_size", -1): "-1 takes all rows",
}
"""(key, value) -> why it is not refused."""


def numbers(cls: type[RunConfig]) -> list[str]:
    """Keys that hold a number, or a number or null."""
    return [key for key, hint in known_keys(cls) if {int, float} & {hint, *get_args(hint)}]


def changed(values: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    values = deepcopy(values)
    place: Any = values
    *groups, name = key.replace("[]", ".0").split(".")
    for group in groups:
        place = place[int(group)] if group.isdigit() else place[group]
    place[name] = value
    return values


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft_then_grpo", "extend_context"])  # they have all keys of the other two
def test_no_number_outside_its_bounds_passes(recipe: str) -> None:
    mixed = recipe == "sft_then_grpo"  # the other recipe refuses mixtures
    cls = RECIPES[recipe]
    keys = [key for key in numbers(cls) if mixed or not key.startswith("data.mixture")]
    values = compose_dict(recipe, [LORA, YARN, *([MIXTURE] if mixed else [])])
    parse(cls, values)
    assert len(keys) > 40 and "trainer.lora.alpha" in keys and "model.architecture.rope_scaling.mscale" in keys
    for key in keys:
        for bad in BAD:
            if (key, bad) in ALLOWED:
                parse(cls, changed(values, key, bad))
                continue
            with pytest.raises(ConfigError) as refused:
                parse(cls, changed(values, key, bad))
            message, name = str(refused.value), key.rpartition(".")[2]
            # pydantic has turned a whole number into a float where one belongs, and true stays true
            values_shown = {f"{name}={shown(bad)[:15]}", f"{name}={float(min(bad, 10**300))}", f"{name}=true"}
            assert any(word in message for word in values_shown), f"{key}={shown(bad)}: {message}"
            assert "must be" in message or "give" in message, f"{key}={bad} is refused without a fix: {message}"


@pytest.mark.parametrize(
    "word",
    [
        "parity.tolerance=nan",
        "parity.tolerance=.NaN",
        "trainer.grad_clip=nan",
        "trainer.grad_clip=inf",
        "algo.schedule.lr=NaN",
        "algo.schedule.lr=1e400",
        "algo.schedule.final_ratio=-1",
        "algo.schedule.final_ratio=5",
        "algo.sampling.temperature=nan",
        "algo.sampling.temperature=1e-5",
        "evaluation.sampling.top_p=nan",
        "evaluation.every=-1",
        "seed=-1",
        "seed=123456789012345678901234567",
        "data.seed=-3",
        "algo.refresh_reference_every=-400",
        "reward.timeout=inf",
        "trainer.lora={alpha: nan}",
        "engine.memory=nan",
        "algo.steps=true",
    ],
)
def test_the_command_line_refuses_it_too(word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_config("grpo", RECIPES["grpo"], [word])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, -0.1])
def test_values_made_in_python_are_checked_as_well(bad: float) -> None:
    for field in ("clip_low", "clip_high", "kl_coef"):
        with pytest.raises(UserError, match=f"algo.loss.{field}="):
            GrpoLoss(**{field: bad})
    for field in ("lr", "final_ratio"):
        with pytest.raises(UserError, match=f"{field}="):
            Schedule(**{"lr": 1e-3, "warmup_steps": 0, "kind": "cosine", "final_ratio": 0.1, field: bad})
    for field in ("rope_theta", "rms_norm_eps", "initializer_range", "routed_scaling_factor"):
        with pytest.raises(ValueError, match=f"{field}="):
            DeepseekV3Config(**{field: bad})
    for field in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        with pytest.raises(ValueError, match=re.escape(f"{field}={bad}")):
            Yarn(**{"factor": 40.0, "original_max_position_embeddings": 4096, field: bad})


@pytest.mark.parametrize("value", [0, 0.0, 1, 0.5, 1e-300])
def test_what_is_inside_passes(value: float) -> None:
    number("key", value, least=0, most=1)
    assert is_number(value)


@pytest.mark.parametrize(
    ("bounds", "value", "words"),
    [
        ({"above": 0}, 0, "key=0 must be above 0"),
        ({"above": 0}, math.nan, "key=nan must be a finite number, above 0"),
        ({"least": 0, "most": 1}, 1.5, "key=1.5 must be at least 0 and at most 1"),
        ({"above": 0, "below": 1}, 1, "key=1 must be above 0 and below 1"),
        ({}, math.inf, "key=inf must be a finite number, between -1e+15 and 1e+15"),
        ({}, "1", "key='1' must be a finite number"),
        ({}, True, "key=True must be a finite number"),
    ],
)
def test_a_refusal_names_key_value_and_bounds(bounds: dict[str, float], value: Any, words: str) -> None:
    with pytest.raises(UserError) as refused:
        number("key", value, **bounds, fix="do this")
    assert str(refused.value).startswith(words) and str(refused.value).endswith("; do this")


@pytest.mark.parametrize("value", [2.0, True, "3", None, math.nan, -1, MOST + 1])
def test_whole_numbers(value: Any) -> None:
    whole("key", MOST)
    with pytest.raises(UserError, match="key="):
        whole("key", value)
    assert is_whole(value) == (value in (-1, MOST + 1))


def test_seeds_fit_what_stores_them() -> None:
    seed("seed", 2**63 - 1)
    for value in (2**63, -1):
        with pytest.raises(UserError, match=f"seed={value} must be at"):
            seed("seed", value)
    assert math.isfinite(torch.tensor(LARGEST, dtype=torch.float32).square())


def test_a_number_that_python_cannot_print_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"key=\d+\.\.\. \(a number of 16610 bits\) must be"):
        number("key", 10**5000, least=0)
    with pytest.raises(ConfigError, match=r"seed='9{200}.*wrong type.*give a whole number"):
        load_config("grpo", RECIPES["grpo"], ["seed=" + "9" * 5000])
