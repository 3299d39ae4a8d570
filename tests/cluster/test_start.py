"""A Ray that does not start says so in exceptions of many kinds; a run says which setting it was and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from rlkit.cluster.start import on_ray
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.errors import UserError


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "cluster=ray: Ray did not start: it timed out; start the command again when this machine is less busy"),
        (["cluster.address=there:1"], "cluster.address=there:1: Ray did not start: it timed out; correct it"),
    ],
)
def test_a_ray_that_does_not_start(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_settings: object) -> None:
        raise Exception("it timed out")  # as ray.init does after 30 seconds on a busy machine

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(UserError) as caught, on_ray(load_config("grpo", GrpoRun, words), tmp_path):
        pass
    assert str(caught.value).startswith(told)
