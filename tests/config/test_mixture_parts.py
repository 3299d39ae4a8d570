"""The parts of a mixture and the forms of rows: what each refuses by itself, and what a part takes from `data`."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlkit.config.demonstrations import PartConfig, SftDataConfig
from rlkit.errors import UserError
from tests.config.variants import but, default


def data(**values: Any) -> SftDataConfig:
    return but(default("sft").data, values)


def parts(*given: dict[str, Any]) -> tuple[PartConfig, ...]:
    return tuple(PartConfig(**part) for part in given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 0.0}, "weight=0.0 must be above 0; remove the part to leave it out"),
        ({"weight": -1.0}, "weight=-1.0 must be above 0; remove the part to leave it out"),
        ({"weight": math.inf}, "weight=inf must be a finite number, above 0; remove the part to leave it out"),
        ({"source": ""}, "source='' names nothing; give a file, a hub id or a named data set"),
    ],
)
def test_a_part_that_shows_nothing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        PartConfig(**{"source": "a.jsonl"} | values)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fim_rate": -0.1}, ["data.fim_rate=-0.1 must be at least 0 and at most 1", "0 leaves texts as they are"]),
        ({"too_long": "drp"}, ["data.too_long='drp' is unknown; use refuse or drop", "did you mean 'drop'?"]),
        ({"source": ""}, ["data.source='' and data.mixture=[] leave nothing to learn from; set one of them"]),
        ({"text_column": "t", "response_column": "r"},
         ["data.text_column='t' and data.response_column='r'", "leave one of the two empty"]),
        ({"fim_rate": 0.25}, ["data.fim_rate=0.25 is for plain texts; set data.text_column, or data.fim_rate to 0"]),
        ({"system_prompt": "Be brief."},
         ["data.system_prompt stands before questions that data.response_column answers, which is empty", "set that"]),
        ({"train_size": 0}, ["data.train_size=0 must be at least 1; -1 takes all rows"]),
        ({"eval_size": -1}, ["data.eval_size=-1 must be at least 0"]),
        ({"seed": -1}, ["data.seed=-1 must be at least 0"]),
        ({"instruction": "half \ud83d"}, ["data.instruction=", "is no text in UTF-8", "write it anew"]),
    ],
)  # fmt: skip
def test_data_that_cannot_be_shown(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        data(**values)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mixture": parts({"source": "a", "fim_rate": 0.1})}, ["data.mixture[0]: data.fim_rate=0.1"]),
        ({"mixture": parts({"source": "a"}, {"source": "b", "system_prompt": "x"})},
         ["data.mixture[1]: data.system_prompt"]),
        ({"mixture": parts({"source": "a", "text_column": "t"}), "response_column": "r"},
         ["data.mixture[0]: data.text_column='t' and data.response_column='r'"]),
        ({"mixture": parts({"source": "a", "text_column": "t", "fim_rate": 2.0})},
         ["data.mixture[0]: data.fim_rate=2.0 must be at least 0 and at most 1"]),
        ({"mixture": parts({"source": "a"}, {"source": "b"}, {"source": "c", "instruction": "\udc00"})},
         ["data.mixture[2]: data.instruction="]),
    ],
)  # fmt: skip
def test_a_part_is_refused_by_its_place(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        data(**values)
    assert all(word in str(refused.value) for word in words), refused.value


def test_each_form_of_rows_alone_is_allowed() -> None:
    assert data(text_column="t", fim_rate=0.1).fim_rate == 0.1
    assert data(response_column="r", system_prompt="Be brief.").system_prompt == "Be brief."
    assert data(source="", mixture=parts({"source": "a"})).source == ""


def test_a_part_stands_for_data_itself() -> None:
    """A key that is set wins, a key that is null is that of `data`, and what belongs to another form is left out."""
    whole = data(
        instruction="Add.",
        response_column="r",
        system_prompt="Be brief.",
        eval_source="held.jsonl",
        mixture=parts(
            {"source": "a", "weight": 3.0, "stream": True},
            {"source": "b", "response_column": "", "instruction": ""},
            {"source": "c", "response_column": "", "text_column": "t", "fim_rate": 0.5},
            {"source": "d", "system_prompt": "", "prompt_column": "q", "tasks": {"gcd": {}}},
        ),
    )
    a, b, c, d = (whole.over(part) for part in whole.mixture)
    assert (a.source, a.instruction, a.response_column, a.system_prompt) == ("a", "Add.", "r", "Be brief.")
    assert (b.source, b.instruction, b.response_column, b.system_prompt) == ("b", "", "", "")
    assert (c.text_column, c.fim_rate, c.system_prompt, c.instruction) == ("t", 0.5, "", "Add.")
    assert (d.system_prompt, d.prompt_column, d.response_column) == ("", "q", "r")
    assert (list(c.tasks), d.tasks) == (["chain_sum"], {"gcd": {}})
    assert {(one.mixture, one.eval_source, one.train_size) for one in (a, b, c, d)} == {((), "", whole.train_size)}
