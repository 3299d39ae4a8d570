"""The settings of a job that makes a dataset: complete in the files, inside their bounds, and whole."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from rlkit.checks import shown
from rlkit.config import DistillRun
from rlkit.config.compose import ConfigError, compose_dict, flat_keys, known_keys, load_config, parse, to_yaml
from rlkit.run.inputs import settings_of
from tests.config.test_checks import BAD, changed, numbers

RECIPE, PATH = "distill_generate", "model.path=teacher"


def load(*words: str) -> DistillRun:
    return load_config(RECIPE, DistillRun, [PATH, *words])


def test_the_file_sets_all_keys_that_the_class_has_and_no_other() -> None:
    known = {key for key, _ in known_keys(DistillRun)}
    written = {key for key, _ in flat_keys(compose_dict(RECIPE))}
    different = {key for key in known ^ written if not key.startswith(("data.tasks", "model.architecture"))}
    assert different == {"reward.kwargs", "engine.options"} & different
    assert not {key for key in known if key.startswith(("trainer.", "evaluation.", "logging.", "checkpoint."))}


def test_what_is_saved_reads_back_as_the_same_configuration() -> None:
    cfg = load("cleaning.tests=[gsm8k, own.jsonl]", "selection.language=zh", "engine=torch")
    assert cfg.cleaning.tests == ("gsm8k", "own.jsonl")
    assert parse(DistillRun, yaml.safe_load(to_yaml(cfg))) == cfg


def test_no_number_outside_its_bounds_passes() -> None:
    values = compose_dict(RECIPE, [PATH])
    keys = [key for key in numbers(DistillRun) if not key.startswith(("model.", "engine.", "data.", "reward."))]
    assert len(keys) > 15 and "cleaning.near" in keys and "sampling.top_p" in keys
    for key in keys:
        for bad in BAD:
            with pytest.raises(ConfigError) as refused:
                parse(DistillRun, changed(values, key, bad))
            message, name = str(refused.value), key.rpartition(".")[2]
            words = {f"{name}={shown(bad)[:15]}", f"{name}={float(min(bad, 10**300))}", f"{name}=true"}
            assert any(word in message for word in words), f"{key}={shown(bad)}: {message}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cleaning.overlap=1.5"], "cleaning.overlap=1.5 must be at least 0.3 and at most 1"),
        (["selection.max_bin_share=0.1"], "selection.max_bin_share=0.1 must be at least 0.25"),
        (["selection.language=klingon"], "selection.language='klingon' is unknown"),
        (["selection.order=longest"], "selection.order='longest' is unknown; use shortest or readable"),
        (["selection.max_tokens=3", "selection.min_tokens=4"], "so that no answer fits"),
        (["teacher.url=host:8000"], "teacher.url='host:8000' is no address"),
        (["teacher.url=http://host/v1"], "teacher.model is empty, and teacher.url='http://host/v1' needs it"),
        (["teacher.model=m"], "teacher.url is empty, and teacher.model='m' needs it"),
        (["teacher.concurrency=0"], "teacher.concurrency=0 must be at least 1"),
        (["data.eval_size=10"], "nothing is held out of a dataset; set it to 0"),
        (["sampling.max_new_tokens=192"], "sampling.max_new_tokens=192 leaves no room for a prompt"),
        (["cluster=local"], "engine=vllm needs a process of its own"),
        (["trainer=torch"], "trainer"),
        (["evaluation.every=3"], "evaluation.every is not a key of recipe distill_generate"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(*words)
    assert message in str(refused.value)


def test_a_server_needs_no_model_and_no_room() -> None:
    words = ["model.path=", "teacher.url=http://host/v1", "teacher.model=m", "sampling.max_new_tokens=9999"]
    cfg = load(*words, "data.instruction=Think.")
    assert (cfg.teacher_name, cfg.content_prefix, cfg.longest_completion) == ("m", "Think.\n", 9999)
    assert load().teacher_name == "teacher" and load().content_prefix == ""
    assert load().demand.ranks == 0, "nobody trains"


def test_what_may_change_when_a_job_goes_on_is_not_part_of_its_settings() -> None:
    def settings(*words: str) -> dict[str, Any]:
        return settings_of(load(*words))

    same = settings()
    for word in ("selection.order=readable", "teacher.retries=1", "reward.workers=7", "output_dir=elsewhere"):
        assert settings(word) == same, word
    for word in ("seed=1", "samples=5", "sampling.top_p=0.5", "cleaning.near=0.9", "rows_per_call=3", "reward=math"):
        assert settings(word) != same, word
