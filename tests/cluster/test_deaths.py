"""A part that dies is named, with what is kept and how to go on; what a living part raises is left as it is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError

from rlkit.cluster.deaths import deaths_named, named_parts
from rlkit.cluster.reaper import below, reaped
from rlkit.cluster.remote import RemoteEngines
from rlkit.cluster.start import on_ray
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.errors import PartDiedError, UserError
from tests.e2e.runs import GRPO_ONLY, LOCAL, SPREAD_REWARD


class Part:
    """An actor that can come to any end."""

    def __init__(self, fails: bool = False) -> None:
        if fails:
            raise UserError("key=value: cannot be made")

    def pid(self) -> int:
        return os.getpid()

    def leave(self) -> None:
        os._exit(3)

    def hang(self) -> None:
        signal.pause()

    def generate(self, *_: object) -> Iterator[int]:
        yield 1
        os._exit(3)

    def finished(self) -> int:
        return 0

    def fail(self, text: str) -> None:
        raise UserError(text)

    def lose(self, text: str) -> None:
        raise PartDiedError(text)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    remote: Any = ray.remote(Part)
    cfg = load_config("grpo", GrpoRun, ["engine=torch", "trainer=torch"])
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know nothing of tests
    with reaped(), on_ray(cfg, tmp_path_factory.mktemp("no-weights")):
        yield remote.options(num_cpus=0, max_concurrency=2).remote


def death(ask: Callable[[], object]) -> str:
    with pytest.raises(PartDiedError) as died, deaths_named():
        ask()
    return str(died.value)


@pytest.mark.slow
def test_whoever_dies_is_named(new: Callable[..., Any]) -> None:
    first, second, third = new(), new(), new()
    with named_parts({f"trainer rank {rank} of 3": actor for rank, actor in enumerate((first, second, third))}):
        pid = ray.get(second.pid.remote())
        asked = [first.hang.remote(), second.hang.remote()]
        os.kill(pid, signal.SIGKILL)
        message = death(lambda: ray.get(asked))
        assert message.startswith(f"trainer rank 1 of 3, process {pid} on ") and " has died (" in message
        assert "\n" not in message and "Some common causes" not in message
        assert "trainer rank 1 of 3" in death(lambda: ray.get(second.pid.remote())), "also when it is asked later"
        # the others fail in a sum with it, and what it has published is lost to an engine: neither is the cause
        assert "trainer rank 1 of 3" in death(lambda: ray.get(third.fail.remote("connection closed by peer")))
        assert "trainer rank 1 of 3" in death(lambda: ray.get([third.fail.remote("first"), second.pid.remote()]))
    assert death(lambda: ray.get(second.pid.remote())).startswith("a part, "), "names end with their block"


@pytest.mark.slow
def test_an_engine_that_dies_while_it_samples(new: Callable[..., Any]) -> None:
    engine = new()
    asked: list[Any] = [object()]
    with (
        named_parts({"engine 1 of 1": engine}),
        pytest.raises(PartDiedError, match=r"engine 1 of 1, process \d+ on \S+ has died"),
    ):
        list(RemoteEngines([engine]).generate(asked, 1, None))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_part_that_has_lost_a_process_of_its_own_says_so(new: Callable[..., Any]) -> None:
    living = new()
    with named_parts({"engine 1 of 1": living}):
        said = death(lambda: ray.get(living.lose.remote("worker 2 of 2, process 7, has died (SIGKILL)")))
    assert said == "engine 1 of 1: worker 2 of 2, process 7, has died (SIGKILL)"


@pytest.mark.slow
def test_what_a_living_part_raises_is_left_as_it_is(new: Callable[..., Any]) -> None:
    living = new()
    with (
        named_parts({"engine 1 of 1": living}),
        pytest.raises(UserError, match="key=value: mend it") as raised,
        deaths_named(),
    ):
        ray.get(living.fail.remote("key=value: mend it"))
    assert isinstance(raised.value, RayTaskError) and "in fail" in str(raised.value), "with the traceback"
    with pytest.raises(RayActorError, match="cannot be made"), deaths_named():
        ray.get(new(fails=True).pid.remote())


@pytest.mark.slow
def test_a_run_says_what_is_kept_and_goes_on(tmp_path: Path) -> None:
    """Its only rank dies; what dies in an engine of several workers, `tests/engine/test_vllm_parallel.py` names."""
    (tmp_path / "plugin.py").write_text(SPREAD_REWARD)
    words = ["cluster=ray", *LOCAL[1:], "reward=plugin.py:spread", "output_dir=run", "checkpoint.every=1"]
    command = [sys.executable, "-m", "recipes.grpo", *GRPO_ONLY, *words]
    with subprocess.Popen(
        [*command, "algo.steps=100000"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        printed = ""
        while not re.search(r"^ +2/100000 ", printed, re.MULTILINE) and (line := process.stdout.readline()):
            printed += line
        for pid, _ in below({process.pid}):
            if b"ray::TrainerActor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        printed += process.stdout.read()
    assert process.returncode == 1 and "Traceback" not in printed, printed
    kept = re.search(
        r"error: trainer rank 0 of 1, process \d+ on \S+ has died \(.*\); run/checkpoints/grpo-(\d+) and ", printed
    )
    assert kept and "with resume=auto the same command goes on from there" in printed, printed
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "checkpoints" / f"grpo-{kept[1]}").is_dir()
