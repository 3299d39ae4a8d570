"""The process of an actor: what it loads stays, and garbage is looked for again when it is there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkit.cluster.actors import EngineActor
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from tests.evaluation.scripted import model_folder

CFG = load_config("grpo", GrpoRun, ["cluster=local", "engine=torch", "trainer=torch"])


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()
    gc.freeze()


def test_an_engine_s_process_keeps_what_it_has_loaded_and_looks_for_garbage_again(tmp_path: Path):
    checkpoint = model_folder(tmp_path)
    before = gc.get_freeze_count()
    actor = EngineActor(CFG.engine, checkpoint, "hf", None)
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert actor.drafts() == (0, 0)


def test_garbage_is_looked_for_after_a_start_that_failed(tmp_path: Path):
    with pytest.raises(Exception, match=r"config\.json"):
        EngineActor(CFG.engine, tmp_path, "hf", None)
    assert gc.isenabled()
