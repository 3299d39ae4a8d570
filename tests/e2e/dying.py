"""A pipeline that is killed in stage after stage: a program that forks each life of it, so nothing is imported twice.

python -m tests.e2e.dying PIPELINE FOLDER STAGE,STAGE,... word ...      ("" for all stages)
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rlkit.distill.journal import Journal
from rlkit.watch.metrics import Metrics

Note = Callable[[str], None]


def main(argv: Sequence[str]) -> None:
    """Runs FOLDER/whole to its end, and FOLDER/killed to a random place in each of the stages and then to its end."""
    pipeline, folder, stages, *words = argv
    run = import_module(f"recipes.{pipeline}").main
    run([*words, "--cfg", "job"])  # what is read of settings is kept for all lives, and so are the libraries
    for library in ("reasoning_gym", "torch._dynamo", "transformers.models.auto.modeling_auto", "peft"):
        import_module(library)
    events = Path(folder) / "events"
    whole, killed = (f"output_dir={folder}/{name}" for name in ("whole", "killed"))
    assert live(run, [*words, whole], lambda stage: append(events, stage)) == 0
    happened = events.read_text().split()
    draw, deaths = random.Random(7), []
    for stage in dict.fromkeys(happened):
        if stages and stage.partition("-")[2] not in stages.split(","):
            continue
        at = draw.randrange(1, happened.count(stage) + 1)
        status = live(run, [*words, killed], Death(stage, at))
        deaths.append((stage, at, happened.count(stage), os.WIFSIGNALED(status)))
    assert live(run, [*words, killed], lambda stage: None) == 0
    (Path(folder) / "deaths.json").write_text(json.dumps(deaths))


class Death:
    """Kills this process at the event number `at` of a stage."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.left = stage, at

    def __call__(self, stage: str) -> None:
        self.left -= stage == self.stage
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def live(run: Callable[[Sequence[str]], None], words: Sequence[str], note: Note) -> int:
    """Runs a pipeline in a process of its own; `note` gets the folder's name of every line and every answer."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    watch(Metrics, "write", lambda metrics: metrics._file.name, note)
    watch(Journal, "record", lambda journal: journal._one("PRAGMA database_list")[2], note)
    status = 1
    try:
        run(words)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def watch(cls: type, name: str, file: Callable[[Any], str], note: Note) -> None:
    """Tells `note` of a call before it does anything."""
    method = getattr(cls, name)

    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        note(Path(file(self)).parent.name)
        return method(self, *args, **kwargs)

    setattr(cls, name, told)


def append(file: Path, line: str) -> None:
    """Adds a line to a file."""
    with file.open("a") as stream:
        stream.write(f"{line}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
