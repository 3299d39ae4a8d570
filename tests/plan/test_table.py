"""The table that a person reads: what it says where things fit, do not fit, lie elsewhere or are not there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.plan.hardware import KNOWN
from rlkit.plan.plan import Plan, make_plan
from rlkit.plan.settings import read_settings
from rlkit.plan.table import lines


def planned(*words: str) -> Plan:
    settings, rest = read_settings(words)
    cfg = load_config("grpo", GrpoRun, rest)
    assert cfg.model.architecture is not None
    return make_plan(cfg, DeepseekArchitecture(config=cfg.model.architecture), settings)


def section(plan: Plan, title: str) -> list[str]:
    """The rows below a title, without their indentation."""
    found = list(lines(plan))
    start = next(place for place, line in enumerate(found) if line.startswith(title))
    end = next((place for place in range(start, len(found)) if not found[place]), len(found))
    return [line.strip() for line in found[start + 1 : end]]


def test_columns_stand_below_each_other() -> None:
    rows = [line for line in lines(planned("hardware=h100")) if line.startswith("  ")]
    at = next(place for place, row in enumerate(rows) if row.split()[0] == "phase")
    column = rows[at].index("seconds")
    assert all(row[column - 1] == " " and row[column] != " " for row in rows[at : at + 7])


def test_a_layout_that_fits_and_one_that_does_not() -> None:
    plan = planned("hardware=h100", "gpus=8", "expert_parallel=8")
    assert section(plan, "trainer: 8 ranks on 1 node, EP8 PP1 ZeRO-1")[-1].endswith(
        "fits into 72.0 GB, 90% of a device"
    )
    tight = replace(plan, trainer=replace(plan.trainer, fits=False))
    assert "DOES NOT FIT into 72.0 GB" in section(tight, "trainer")[-1]


def test_what_lies_in_main_memory_is_said() -> None:
    rows = section(planned("hardware=h100", "gpus=2", "zero_stage=2", "offload=optimizer"), "trainer: 2 ranks")
    assert rows[1].startswith("gradients") and rows[1].endswith("in main memory")
    assert rows[2].endswith("a rank in main memory")


def test_no_reference_without_a_penalty() -> None:
    assert section(planned("hardware=h100", "algo.loss.kl_coef=0"), "trainer")[3].split() == [
        "reference",
        "0",
        "B",
        "none",
    ]
    assert "reference" not in "".join(section(planned("hardware=h100", "algo.loss.kl_coef=0"), "floor"))


def test_where_nothing_fits() -> None:
    plan = planned("hardware=h100")
    nothing = replace(plan.smallest, nodes=None, trainer=None, engine=None)
    rows = section(replace(plan, smallest=nothing), "the fewest nodes")
    assert rows[0].endswith("none within reach") and rows[-1].endswith("none within reach")


def test_a_rehearsal_has_a_row_for_every_stage() -> None:
    rows = section(
        planned("hardware=h100", "gpus=4", "pipeline_stages=2", "expert_parallel=2", "rehearse=true"), "rehearsal"
    )
    assert rows[0].startswith("union") and rows[0].endswith("the published index, each just once")
    assert [row.split()[:2] for row in rows[2:]] == [["0", "0-1"], ["1", "2-3"]]


@pytest.mark.parametrize("name", list(KNOWN))
def test_the_source_of_the_figures_is_printed(name: str) -> None:
    found = list(lines(planned(f"hardware={name}")))
    assert found[0].startswith(f"plan of grpo on {name}: 8 x ")
    assert found[1].strip() == KNOWN[name].source
