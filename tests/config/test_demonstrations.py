"""What SFT shows, as it is set: refusals by name, and which keys a part of a mixture takes over."""

from __future__ import annotations

import pytest

from rlkit.config import ExtendContextRun, GrpoRun, SftRun, SftThenGrpoRun
from rlkit.config.compose import ConfigError, grpo_keys, load_config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft.epochs=2"], r"sft\.epochs=2 and sft\.steps=600 both say how long SFT takes; set sft\.steps=0"),
        (["sft.epochs=-1"], r"sft\.epochs=-1.* must be at least 0"),
        (["sft.held_out_every=-1"], r"sft\.held_out_every=-1 must be at least 0"),
        (["data.too_long=cut"], r"data\.too_long='cut' is unknown; use refuse or drop"),
        (["data.fim_rate=0.1"], r"data\.fim_rate=0\.1 is for plain texts; set data\.text_column"),
        (["data.fim_rate=1.5", "data.text_column=t"], r"data\.fim_rate=1\.5 must be at least 0 and at most 1"),
        (["data.system_prompt=x"], r"data\.system_prompt stands before questions that data\.response_column answers"),
        (["data.text_column=t", "data.response_column=r"], r"rows are either plain texts or questions with responses"),
        (["data.source="], r"data\.source='' and data\.mixture=\[\] leave nothing to learn from"),
        (["data.mixture=[{source: a.jsonl, weight: 0}]"], r"data\.mixture\.0\.weight=0.* must be above 0"),
        (["data.mixture=[{source: ''}]"], r"source='' names nothing"),
        (["data.mixture=[{weight: 2}]"], r"data\.mixture\.0\.source is missing"),
        (["data.mixture=[{source: a, column: b}]"], r"data\.mixture\[0\]\.column is not a key"),
        (["data.mixture=[{source: a}, {source: b, fim_rate: 0.1}]"], r"data\.mixture\[1\]: .*fim_rate.* plain texts"),
    ],
)
def test_what_does_not_go_together_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("sft", SftRun, words)


def test_other_recipes_refuse_what_is_not_theirs() -> None:
    for word in ("data.mixture=[]", "data.too_long=drop", "sft.epochs=1"):
        with pytest.raises(ConfigError, match=r"is not a key of recipe grpo"):
            load_config("grpo", GrpoRun, [word])
    assert not [key for key in grpo_keys() if key.startswith(("sft.", "data.mixture", "data.fim", "data.messages"))]
    with pytest.raises(ConfigError, match=r"data\.source='' asks nothing, and GRPO needs questions"):
        load_config("sft_then_grpo", SftThenGrpoRun, ["data.source=", "data.mixture=[{source: a.jsonl}]"])
    for words in (["sft.epochs=1", "sft.steps=0"], ["data.mixture=[{source: a.jsonl}]"]):
        with pytest.raises(ConfigError, match="does not go with recipe extend_context"):
            load_config("extend_context", ExtendContextRun, words)


def test_a_part_has_the_keys_of_data_but_for_those_that_it_sets() -> None:
    data = load_config("sft", SftRun, [
        "data.text_column=content", "data.fim_rate=0.1", "data.instruction=Add.",
        "data.mixture=[{source: a.jsonl}, {source: b.jsonl, text_column: '', instruction: ''}]",
    ]).data  # fmt: skip
    texts, rows = (data.over(part) for part in data.mixture)
    assert (texts.source, texts.text_column, texts.fim_rate, texts.instruction) == ("a.jsonl", "content", 0.1, "Add.")
    assert (rows.source, rows.text_column, rows.fim_rate, rows.instruction) == ("b.jsonl", "", 0.0, "")
    assert texts.eval_source == rows.eval_source == "" and texts.mixture == ()


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(1, 128, 1), (2, 1000, 16), (0.5, 1000, 4), (3, 1, 1)])
def test_epochs_are_steps_rounded_up(epochs: float, rows: int, steps: int) -> None:
    cfg = load_config("sft", SftRun, ["sft.steps=0", f"sft.epochs={epochs}"])
    counted = cfg.counted(rows)
    assert (counted.sft.steps, counted.sft.epochs) == (steps, 0) and counted.counted(7) == counted
    with pytest.raises(ValueError, match=r"sft\.epochs=.*: data\.mixture has a part with stream=true"):
        cfg.counted(None)
    assert load_config("sft", SftRun).counted(None).sft.steps == 600
