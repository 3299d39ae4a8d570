"""An engine whose completions are written beforehand, and small files to evaluate with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlkit.cli.main import main
from rlkit.engine.base import rollout_seed
from rlkit.evaluation import run
from rlkit.types import Group, Prompt, Rollout, Sampling
from tests.hf_folders import make, save

LOCAL = ("cluster=local", "engine=torch")
Script = Callable[[Prompt, int], str]
"""From a prompt and the number of a sample to a completion."""


class Scripted:
    """Writes what it is told to, and remembers what it was asked for."""

    def __init__(self, script: Script) -> None:
        self.script, self.asked = script, list[str]()

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        assert n == 1
        for prompt in reversed(prompts):  # groups need not come in the order of the prompts
            self.asked.append(prompt.id)
            text = self.script(prompt, int(prompt.id.rpartition("#")[2]))
            rollout = Rollout(
                tokens=(5, 6),
                logprobs=(-1.0, -1.0),
                text=text,
                finish_reason="stop",
                weight_version=0,
                seed=rollout_seed(sampling.seed, prompt.id, 0),
            )
            yield Group(prompt=prompt, rollouts=(rollout,))

    def started(self, monkeypatch: pytest.MonkeyPatch) -> Scripted:
        """Takes the place of the engine that an evaluation starts."""

        @contextmanager
        def engine(*_: object) -> Iterator[Scripted]:
            yield self

        monkeypatch.setattr(run, "engine", engine)
        return self


def tagged(answer: object) -> str:
    return f"<think></think><answer>{answer}</answer>"


def model_folder(folder: Path) -> Path:
    """A model of transformers with a long context; only its config and tokenizer matter to a scripted engine."""
    return save(make("llama", max_position_embeddings=65_536), folder)


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def sums(file: Path, number: int = 6) -> Path:
    """Sums as a user's own file."""
    return write_rows(file, [{"question": f"{a} + {a} =", "answer": 2 * a} for a in range(1, number + 1)])


def evaluate(model: Path, *words: str) -> dict[str, Any]:
    """Runs the command in one process and returns results.json."""
    main(["eval", str(model), *LOCAL, *words])
    [folder] = [Path(word.removeprefix("output_dir=")) for word in words if word.startswith("output_dir=")]
    return results(folder)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
