"""The settings of a pipeline: sizes, words for one stage and words for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.multistage.settings import as_word, has_key, read_settings


def test_words_of_a_stage_come_last_and_links_after_them() -> None:
    cfg = read_settings("r1_zero", ["seed=3", "rl.seed=4", "output_dir=there"])
    words = cfg.words("rl", "grpo", 2, {"model.path": Path("there/1-base/model")})
    assert words.index("seed=3") < words.index("seed=4") < words.index("model.path=there/1-base/model")
    assert words[-1] == "output_dir=there/2-rl"
    assert "seed=4" not in cfg.words("base", "sft", 1, {})


def test_a_shared_word_goes_to_the_recipes_that_have_its_key() -> None:
    cfg = read_settings("r1_zero", ["algo.steps=3"])
    assert "algo.steps=3" in cfg.words("rl", "grpo", 2, {})
    assert "algo.steps=3" not in cfg.words("base", "sft", 1, {})


def test_a_wrong_value_is_no_missing_key() -> None:
    with pytest.raises(UserError, match="engine=torhc is unknown"):
        has_key("sft", "engine=torhc")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("size=small", r"size=small is unknown; r1_zero has tiny, paper"),
        ("dry_run=maybe", r"dry_run=maybe is neither true nor false"),
        ("rl.output_dir=x", r"a stage's folder is outputs/r1_zero/NUMBER-rl; set output_dir instead"),
    ],
)
def test_refusals_name_the_value_and_the_fix(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings("r1_zero", [word])


def test_values_of_the_file_are_written_as_the_command_line_has_them() -> None:
    assert as_word("a", "x y") == "a=x y"
    assert as_word("a", None) == "a=null"
    assert as_word("a", True) == "a=true"
    assert as_word("a", 3e-06) == "a=3.0e-06"
    assert as_word("a", {"rewards": ["number", "format"]}) == "a={rewards: [number, format]}"
