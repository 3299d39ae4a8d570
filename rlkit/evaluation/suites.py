"""Suites: problems with a prompt template, a reward and a default sampling, read from `configs/suites` and data files.

GSM8K, HumanEval and MBPP are in the package, Reasoning Gym is generated. Problems that may not be shipped are looked
for in `suite_dir`, and whoever misses them is told what to put there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from rlkit.checks import MAX_SEED, suggestion
from rlkit.config import DataConfig, EvalRun, RewardConfig, SuiteConfig
from rlkit.config.compose import FILES, parse
from rlkit.data.rows import Row, row_of
from rlkit.data.sources import FILE_ENDINGS, Source, open_source
from rlkit.errors import UserError

FOLDER = FILES / "suites"
OWN = "own"
"""The suite file that describes a file of the user's; it is no suite."""
PACKED = Path(__file__).parents[1] / "data"
"""Where the data lie that are shipped, each in a folder of its own."""
BY_NAME = ("reasoning_gym", "gsm8k")
"""Sources that are read by their name."""
ENDINGS = (*FILE_ENDINGS, *(f"{ending}.gz" for ending in FILE_ENDINGS))
SUITE_FILES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Holds the problems of a suite, and how they are put to a model and judged."""

    name: str
    about: SuiteConfig
    rows: tuple[Row, ...]
    """All of them, whatever `size` says."""
    reward: RewardConfig
    digest: str
    """The fingerprint of the problems."""

    def row(self, id: str) -> Row:
        """Returns a problem by its id, which ends in its place."""
        return self.rows[int(id.rpartition("/")[2])]

    def asked(self, size: int) -> tuple[Row, ...]:
        """Returns the problems that are asked for: the first `size`, or with -1 all."""
        return self.rows if size == -1 else self.rows[:size]

    @property
    def votes(self) -> bool:
        """Says whether its problems have answers, so that a majority can be counted."""
        return bool(self.about.answer_column)


def suite_names() -> list[str]:
    """Returns the names of the suites that come with rlkit."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem != OWN)


def read_suites(cfg: EvalRun) -> tuple[Suite, ...]:
    """Reads the suites that `suite` names, in its order.

    Raises UserError for a name that is unknown or comes twice, a file that is missing, and rows without the columns.
    """
    words = suite_words(cfg)
    if not words:
        raise UserError(f"suite={cfg.suite!r} names no suite; {_choices()}")
    suites = tuple(_read_suite(word, cfg) for word in words)
    names = [suite.name for suite in suites]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"suite={cfg.suite}: two suites are called {twice[0]!r}; leave one out or rename its file")
    return suites


def suite_words(cfg: EvalRun) -> list[str]:
    """Returns the words of `suite`, one for each suite."""
    return [word.strip() for word in cfg.suite.split(",") if word.strip()]


def _read_suite(word: str, cfg: EvalRun) -> Suite:
    file = Path(word).expanduser()
    if word in suite_names():
        name, about, places = word, _read_about(FOLDER / f"{word}.yaml"), (cfg.suite_dir,)
    elif word.endswith(SUITE_FILES):
        name, about, places = file.stem, _read_about(file), (file.absolute().parent, cfg.suite_dir)
    elif word.endswith(ENDINGS):
        own = _read_about(FOLDER / f"{OWN}.yaml")
        name, places = file.name.split(".")[0], (file.absolute().parent,)
        about = replace(own, title=file.name, source=file.name)
    else:
        raise UserError(f"suite={word!r} is unknown{suggestion(word, suite_names())}; {_choices()}")
    if cfg.instruction is not None:
        about = replace(about, instruction=cfg.instruction)
    rows = _read_rows(name, about, places)
    reward = cfg.reward if cfg.reward.fn else replace(cfg.reward, fn=about.reward, kwargs=about.kwargs)
    return Suite(name=name, about=about, rows=rows, reward=reward, digest=_digest(rows))


def _choices() -> str:
    return (
        f"there are {', '.join(suite_names())}, files of your own ({', '.join(FILE_ENDINGS)}, with the columns "
        "question and answer) and suite files (.yaml)"
    )


def _read_about(file: Path) -> SuiteConfig:
    if not file.is_file():
        raise UserError(f"suite={file}: no such file (looked at {file.absolute()}); correct the path")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise UserError(f"it holds no keys; {FOLDER / f'{OWN}.yaml'} shows them")
        # What a file leaves out is as for a file of questions.
        own = yaml.safe_load((FOLDER / f"{OWN}.yaml").read_text(encoding="utf-8"))
        return parse(SuiteConfig, own | found)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, UserError) as error:
        raise UserError(f"suite={file}: {error}") from error


def _read_rows(name: str, about: SuiteConfig, places: Iterable[Path]) -> tuple[Row, ...]:
    source = about.source if about.source in BY_NAME else str(_find(name, about, list(places)))
    opened = open_source(source, _as_data(about), f"suite={name}: source")
    if opened.endless and about.size == -1:
        raise UserError(f"suite={name}: size=-1, but {source} has no end; give a number of problems")
    split = "test" if "test" in opened.splits else next(iter(opened.splits))
    records = list(islice(opened.splits[split], None if about.size == -1 else about.size))
    if not records:
        raise UserError(f"suite={name}: {source} has no rows; use another file")
    columns = Source(splits={}, question=about.prompt_column, answer=about.answer_column, solution="")
    for place, (_, record) in enumerate(records):
        _check_columns(name, place, record, about)
    return tuple(row_of(f"{name}/{place}", record, columns) for place, (_, record) in enumerate(records))


def _find(name: str, about: SuiteConfig, places: list[Path]) -> Path:
    """Returns the file of a suite, or says where to put it, and with which columns."""
    shipped = PACKED / about.source / "test.jsonl.gz"
    named = [place / Path(f"{about.source}{ending}").expanduser() for place in places for ending in ("", *ENDINGS)]
    for file in (shipped, *named):
        if file.is_file() and file.name.endswith(ENDINGS):
            return file
    wanted = about.source if about.source.endswith(ENDINGS) else f"{about.source}{FILE_ENDINGS[0]}"
    where = (places[-1] / wanted).absolute()
    if name not in suite_names():
        raise UserError(
            f"suite={name}: there is no file {where}; correct the path, or put it there with {_columns(about)}"
        )
    raise UserError(
        f"suite={name}: its problems may not be shipped with rlkit ({about.about}); put them at {where} (or as "
        f"{', '.join(FILE_ENDINGS[1:])}, each also with .gz), with {_columns(about)}, or set suite_dir to their folder"
    )


def _columns(about: SuiteConfig) -> str:
    names = [about.prompt_column, about.answer_column]
    if any("{" in name for name in names):
        return f"the columns in {' and '.join(repr(name) for name in names if name)}"
    return f"the columns {' and '.join(filter(None, names))}" if all(names) else f"the column {names[0]}"


def _check_columns(name: str, place: int, record: dict[str, Any], about: SuiteConfig) -> None:
    """Refuses a row without a column that the suite reads; a template says itself what it misses."""
    wanted = [column for column in (about.prompt_column, about.answer_column) if column and "{" not in column]
    if missing := [column for column in wanted if column not in record]:
        raise UserError(
            f"suite={name}: row {place + 1} has no column {missing[0]!r} (its columns: {', '.join(map(str, record))}); "
            f"give a file with {_columns(about)}, or describe yours in a suite file with prompt_column and "
            "answer_column (docs/evaluate.md)"
        )


def _as_data(about: SuiteConfig) -> DataConfig:
    return DataConfig(
        source=about.source,
        eval_source="",
        train_size=-1,
        eval_size=1,
        tasks=about.tasks,
        prompt_column=about.prompt_column,
        answer_column=about.answer_column,
        solution_column="",
        instruction=about.instruction,
        seed=MAX_SEED,  # always the same, and not those that `data.seed=0` draws for training
    )


def _digest(rows: Iterable[Row]) -> str:
    running = blake2b(digest_size=16)
    for row in rows:
        line = json.dumps([row.id, row.question, row.answer, row.meta], sort_keys=True, default=str)
        running.update(line.encode(errors="backslashreplace"))
    return running.hexdigest()
