"""A job for distillation: teacher, cleaning and selection by themselves, and what the run as a whole refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlkit.config import DistillRun
from rlkit.config.distill import MAX_CONCURRENCY, CleaningConfig, SelectionConfig, TeacherConfig
from rlkit.errors import UserError
from tests.config.variants import but, default

SERVER = {"model.path": "", "teacher.url": "http://host:8000/v1", "teacher.model": "big"}


def teacher(**values: Any) -> TeacherConfig:
    return TeacherConfig(**{"url": "", "model": "", "concurrency": 64, "timeout": 600.0, "retries": 8} | values)


def cleaning(**values: Any) -> CleaningConfig:
    return CleaningConfig(**{"near": 0.7, "tests": ("gsm8k",), "tests_column": "", "overlap": 0.5} | values)


def selection(**values: Any) -> SelectionConfig:
    given: dict[str, Any] = {
        "max_per_problem": 1,
        "order": "shortest",
        "min_tokens": 1,
        "max_tokens": 0,
        "language": "",
        "min_language_share": 0.9,
        "max_bin_share": 1.0,
        "shard_rows": 100,
        "pair_margin": 0,
    }
    return SelectionConfig(**given | values)


def run(**changes: Any) -> DistillRun:
    return but(default("distill_generate"), {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"concurrency": 0}, "teacher.concurrency=0 must be at least 1"),
        ({"concurrency": MAX_CONCURRENCY + 1}, "teacher.concurrency=4097 must be at most 4096"),
        ({"timeout": 0}, "teacher.timeout=0 must be above 0 and at most 1e+06; 600 seconds are usual"),
        ({"timeout": math.nan}, "teacher.timeout=nan must be a finite number"),
        ({"timeout": 1_000_001}, "teacher.timeout=1000001 must be above 0 and at most 1e+06"),
        ({"retries": -1}, "teacher.retries=-1 must be at least 0; 8 wait about a minute in all"),
        ({"retries": 101}, "teacher.retries=101 must be at most 100"),
        ({"url": "host:8000"}, "teacher.url='host:8000' is no address; give one as http://host:8000/v1"),
        ({"url": "ftp://host", "model": "m"}, "teacher.url='ftp://host' is no address"),
        ({"url": "https://host/v1"},
         "teacher.model is empty, and teacher.url='https://host/v1' needs it; set both for a server, or none"),
        ({"model": "m"}, "teacher.url is empty, and teacher.model='m' needs it; set both for a server, or none"),
    ],
)  # fmt: skip
def test_a_teacher_that_cannot_answer(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        teacher(**values)
    assert message in str(refused.value)


def test_a_teacher_at_its_bounds() -> None:
    one = teacher(url="https://host/v1", model="m", concurrency=MAX_CONCURRENCY, timeout=1_000_000, retries=0)
    assert (one.url, one.model) == ("https://host/v1", "m")
    assert teacher(concurrency=1, timeout=0.1, retries=100).url == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"near": 0.29}, "cleaning.near=0.29 must be at least 0.3 and at most 1; 0.7 is the default"),
        ({"near": 1.01}, "cleaning.near=1.01 must be at least 0.3 and at most 1"),
        ({"near": math.inf}, "cleaning.near=inf must be a finite number"),
        ({"overlap": 0.0}, "cleaning.overlap=0.0 must be at least 0.3 and at most 1; 0.5 is the default"),
        ({"overlap": True}, "cleaning.overlap=True must be a finite number"),
    ],
)
def test_shares_that_leave_everything_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        cleaning(**values)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_per_problem": 0}, "selection.max_per_problem=0 must be at least 1"),
        ({"order": "readble"}, "selection.order='readble' is unknown; use shortest or readable (did you mean"),
        ({"min_tokens": -1}, "selection.min_tokens=-1 must be at least 0"),
        ({"max_tokens": -1}, "selection.max_tokens=-1 must be at least 0; 0 sets no limit"),
        ({"min_language_share": 1.1}, "selection.min_language_share=1.1 must be at least 0 and at most 1; 0.9 is"),
        ({"max_bin_share": 0.2}, "selection.max_bin_share=0.2 must be at least 0.25 and at most 1; 1 does not"),
        ({"shard_rows": 0}, "selection.shard_rows=0 must be at least 1"),
        ({"pair_margin": -1}, "selection.pair_margin=-1 must be at least 0; 0 writes no preferences"),
        ({"language": "xx"}, "selection.language='xx' is unknown; use "),
        ({"max_tokens": 3, "min_tokens": 4},
         "selection.max_tokens=3 is below selection.min_tokens=4, so that no answer fits; raise the first or lower"),
    ],
)  # fmt: skip
def test_windows_that_nothing_fits_into(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        selection(**values)
    assert message in str(refused.value)


def test_windows_that_one_length_fits_into() -> None:
    assert selection(max_tokens=4, min_tokens=4).max_tokens == 4
    assert selection(max_tokens=0, min_tokens=400).max_tokens == 0, "0 sets no limit"
    assert [selection(language=name).language for name in ("", "en", "zh", "ja")] == ["", "en", "zh", "ja"]
    assert selection(max_bin_share=0.25, min_language_share=0.0, order="readable").max_bin_share == 0.25


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 0}, ["samples=0 must be at least 1"]),
        ({"samples": 100_001}, ["samples=100001 must be at most 100000"]),
        ({"rows_per_call": 0}, ["rows_per_call=0 must be at least 1"]),
        ({"data.eval_size": 5}, ["data.eval_size=5: nothing is held out of a dataset", "cleaning.tests"]),
        ({"reward.fn": "model:judge"},
         ["reward=model:judge: a reward model judges while a policy is trained", "as reward=math"]),
        ({"reward.fn": "composite", "reward.kwargs": {"rewards": ["math", "model:judge"]}},
         ["reward=composite: a reward model judges"]),
        ({"model.path": ""},
         ["model.path is empty, and a teacher is a trained model", "teacher.url and teacher.model"]),
        ({"sampling.max_new_tokens": 192},
         ["sampling.max_new_tokens=192 leaves no room for a prompt in engine.max_model_len=192"]),
        ({"cluster.kind": "local"}, ["engine=vllm needs a process of its own; use cluster=ray, or engine=torch"]),
        ({"resume": "no"}, ["resume='no' is unknown; use auto or never"]),
    ],
)  # fmt: skip
def test_a_job_that_cannot_end_well(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        but(default("distill_generate"), changes)
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert not message.startswith("."), "the sampling of a job stands in no group"


def test_the_length_that_a_server_gives_is_its_own_matter() -> None:
    far = SERVER | {"sampling.max_new_tokens": 100_000}
    cfg = but(default("distill_generate"), far)
    assert (cfg.longest_completion, cfg.teacher_name, cfg.content_prefix) == (100_000, "big", "")
    with pytest.raises(UserError, match="leaves no room"):
        but(default("distill_generate"), far | {"teacher.url": "", "teacher.model": "", "model.path": "here"})


def test_what_a_job_says_of_itself() -> None:
    cfg = run(data__instruction="Think first.", sampling__max_new_tokens=100)
    assert (cfg.content_prefix, cfg.teacher_name, cfg.longest_completion) == ("Think first.\n", "teacher", 100)
    assert (cfg.demand.engines, cfg.demand.ranks, cfg.demand.judges, cfg.demand.processes) == (1, 0, 0, 1)
    assert run(engine__num_engines=2, engine__tensor_parallel=3).demand.processes == 6
    assert cfg.counted(10) is cfg and cfg.served_adapter is None
