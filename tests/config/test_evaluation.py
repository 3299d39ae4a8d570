"""What `rlkit eval` may be told: the files set every key, and what they say is read back the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from rlkit.config import EvalRun, SamplingChoice, SamplingConfig, SuiteConfig
from rlkit.config.compose import FILES, compose_dict, flat_keys, known_keys, load_config, parse, to_yaml
from rlkit.errors import UserError

GIVEN = ["model.path=somewhere", "suite=gsm8k"]
SUITES = sorted((FILES / "suites").glob("*.yaml"))


def test_the_files_set_all_keys_that_the_class_has_and_no_other() -> None:
    ours = ("model.architecture.", "model.tokenizer")  # of new models, and nobody asks one what it can
    known = {key for key, _ in known_keys(EvalRun) if not key.startswith(ours)}
    written = {key for key, _ in flat_keys(compose_dict("eval", GIVEN))}
    assert written - {"model.architecture"} == known


def test_what_is_saved_reads_back_as_the_same_configuration() -> None:
    cfg = load_config("eval", EvalRun, [*GIVEN, "sampling.temperature=0.5", "samples=8", "reward=math", "suite_dir=~"])
    assert (cfg.sampling.temperature, cfg.sampling.top_p, cfg.reward.fn) == (0.5, None, "math")
    assert cfg.suite_dir == Path.home()
    assert parse(EvalRun, yaml.safe_load(to_yaml(cfg))) == cfg


@pytest.mark.parametrize("file", SUITES, ids=lambda file: file.stem)
def test_every_suite_file_sets_every_key_and_no_other(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    assert list(values) == [field.name for field in fields(SuiteConfig)]
    assert parse(SuiteConfig, values).title


def test_sampling_is_the_suites_own_where_nothing_is_chosen() -> None:
    own = SamplingConfig(temperature=0.6, top_p=0.95, max_new_tokens=64)
    assert SamplingChoice(temperature=None, top_p=None, max_new_tokens=None).over(own) == own
    chosen = SamplingChoice(temperature=0, top_p=None, max_new_tokens=8)
    assert chosen.over(own) == SamplingConfig(temperature=0, top_p=0.95, max_new_tokens=8)


def test_a_number_of_problems_is_checked() -> None:
    with pytest.raises(UserError, match="size=0 must be at least 1; -1 takes all problems"):
        load_config("eval", EvalRun, [*GIVEN, "size=0"])
    values = yaml.safe_load(SUITES[0].read_text())
    with pytest.raises(UserError, match="size=-2"):
        parse(SuiteConfig, values | {"size": -2})
