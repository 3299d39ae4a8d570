"""Compare evaluations of the same problems: every one with the first, problem by problem, corrected for many looks.

The same problems were put to all, so what counts is where they differ on one problem; that is sharper than comparing
two intervals. Whoever takes the best of many checkpoints has looked at all of them: Holm's correction says what is left
of the smallest p-value then. The estimate of a chosen best is still too high, and only fresh problems mend that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from rlkit.errors import UserError
from rlkit.evaluation.estimates import Estimate, difference, estimate, holm, paired_p, whole_differences
from rlkit.evaluation.measure import RESULTS, read_results
from rlkit.evaluation.report import REPORT, as_interval, html_table
from rlkit.watch.console import Console
from rlkit.watch.figures import figure
from rlkit.watch.metrics import write_atomic
from rlkit.watch.page import page, tile
from rlkit.watch.plots import interval_plot

MCNEMAR = "McNemar, exact"
PERMUTATION = "paired permutation, exact"
LEVEL = 0.05
METHOD = (
    "Each evaluation is compared with the first one, problem by problem. p: the exact test in which every problem "
    "could as well have come out the other way round; with one sample each it is McNemar's. p, Holm: corrected for all "
    "tests of this page, so that it also holds for the best of them. The interval of the difference is clustered by "
    "problem (Miller 2024; Bonett and Price 2012). The pass@1 of an evaluation that was chosen because it is the best "
    "is too high on average; measure it again on other problems."
)

Outcomes = Mapping[str, Sequence[bool]]
"""Of each problem, whether each sample is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One evaluation beside the first, on one suite."""

    suite: str
    folder: str
    problems: int
    left_out: int
    """Problems that both were asked and that are not compared: one of the two owes a sample or its verdict."""
    samples: tuple[int, int]
    """Of the first and of this one, the fewest of a problem."""
    first: Estimate
    """pass@1."""
    this: Estimate
    difference: Estimate
    better: int
    """Problems on which this one has the larger share of right samples."""
    worse: int
    test: str
    p: float
    p_holm: float = 1.0


def compare(folders: Sequence[Path], output_dir: Path) -> None:
    """Compares evaluations with the first of them, on the suites that all have; writes results.json and report.html.

    Raises UserError for fewer than two folders, for one that is no evaluation, and for suites whose problems or rewards
    differ.
    """
    _check_folders(folders, output_dir)
    results = {str(folder): read_results(folder) for folder in folders}
    suites, left_out = _common(results)
    first, *others = results
    contests = [
        contest(suite, other, results[first]["suites"][suite], results[other]["suites"][suite])
        for suite in suites
        for other in others
    ]
    adjusted = holm([one.p for one in contests])
    contests = [replace(one, p_holm=p) for one, p in zip(contests, adjusted, strict=True)]
    output_dir.mkdir(parents=True, exist_ok=True)
    numbers = {"first": first, "contests": [asdict(one) for one in contests], "best": _best(first, contests)}
    write_atomic(output_dir / RESULTS, json.dumps(numbers | {"left_out": left_out}, indent=1) + "\n")
    write_atomic(output_dir / REPORT, _page(first, contests, left_out))
    console = Console()
    for line in _lines(first, contests, left_out):
        console.line(line)
    console.line(f"report: {output_dir / REPORT}")


def contest(suite: str, folder: str, first: Mapping[str, Any], this: Mapping[str, Any]) -> Contest:
    """Compares two evaluations of one suite on the problems that both have done; Holm's correction comes later."""
    before, after = _outcomes(first), _outcomes(this)
    ids = _done_by_both(first, this)
    pairs = [(before[id], after[id]) for id in ids]
    shares = [(fmean(a), fmean(b)) for a, b in pairs]
    differences = whole_differences([a for a, _ in pairs], [b for _, b in pairs])
    fewest = min(len(a) for a, _ in pairs), min(len(b) for _, b in pairs)
    alone = all(len(samples) == 1 for pair in pairs for samples in pair)
    return Contest(
        suite=suite,
        folder=folder,
        problems=len(ids),
        left_out=len(_asked(first) & _asked(this)) - len(ids),
        samples=fewest,
        first=estimate([a for a, _ in shares], fewest[0]),
        this=estimate([b for _, b in shares], fewest[1]),
        difference=difference([a for a, _ in shares], [b for _, b in shares]),
        better=sum(b > a for a, b in shares),
        worse=sum(b < a for a, b in shares),
        test=MCNEMAR if alone else PERMUTATION,
        p=paired_p(differences),
    )


def _outcomes(suite: Mapping[str, Any]) -> Outcomes:
    """Reads what each sample was worth; one on which the reward reached no verdict is not right."""
    return {id: [bool(sample) for sample in samples] for id, samples in suite["outcomes"].items()}


def _incomplete(suite: Mapping[str, Any]) -> set[str]:
    """Returns the problems that owe a sample or a verdict; where they are not named, those without a verdict."""
    if "incomplete" in suite:
        return set(suite["incomplete"])
    return {id for id, samples in suite["outcomes"].items() if suite.get("unjudged") and None in samples}


def _asked(suite: Mapping[str, Any]) -> set[str]:
    return suite["outcomes"].keys() | _incomplete(suite)


def _done_by_both(first: Mapping[str, Any], this: Mapping[str, Any]) -> list[str]:
    """Returns the problems that neither owes anything on: of a failed machine nobody knows what was right."""
    owed = _incomplete(first) | _incomplete(this)
    return [id for id in first["outcomes"] if id in this["outcomes"] and id not in owed]


def _check_folders(folders: Sequence[Path], output_dir: Path) -> None:
    if len(folders) < 2:
        raise UserError(
            "'rlkit eval compare' needs two folders of evaluations, or more: rlkit eval compare DIR_A DIR_B"
        )
    places = [folder.resolve() for folder in folders]
    if twice := [folder for folder in folders if places.count(folder.resolve()) > 1]:
        raise UserError(f"{twice[0]} is given twice; give each evaluation once")
    if output_dir.resolve() in places or (output_dir / "config.yaml").exists():
        raise UserError(f"output_dir={output_dir} holds a run or an evaluation; set another output_dir")


def _common(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Returns the suites that all evaluations have, and those that some have; raises UserError if they differ."""
    names = list(dict.fromkeys(name for found in results.values() for name in found["suites"]))
    common = [name for name in names if all(name in found["suites"] for found in results.values())]
    if not common:
        has = "; ".join(f"{folder} has {', '.join(found['suites'])}" for folder, found in results.items())
        raise UserError(f"no suite is in all of these evaluations: {has}; run one on the suites of the other")
    for name in common:
        (first, before), *others = ((folder, found["suites"][name]) for folder, found in results.items())
        for folder, after in others:
            if before["settings"]["problems"] != after["settings"]["problems"]:
                raise UserError(
                    f"{first} and {folder} have other problems under the name {name}; rename one of the files"
                )
            if before["reward"] != after["reward"]:
                raise UserError(
                    f"suite {name} was judged by {before['reward']} in {first} and by {after['reward']} in {folder}; "
                    "judge both by one, with --rescore"
                )
            if before["reward_mark"] != after["reward_mark"]:
                raise UserError(
                    f"suite {name} was judged by {before['reward']} in {first} and in {folder}, but with other "
                    "settings, another file or another version of rlkit; judge both by one, with --rescore"
                )
            if not _asked(before) & _asked(after):
                raise UserError(
                    f"{first} and {folder} have no problem of suite {name} in common; run them with one size"
                )
            if not _done_by_both(before, after):
                owing = " and ".join(place for place, suite in ((first, before), (folder, after)) if _incomplete(suite))
                raise UserError(
                    f"{first} and {folder} have no problem of suite {name} that both have done: in {owing} samples are "
                    "missing or have no verdict because a machine failed; give the same 'rlkit eval' command again: "
                    "only these are drawn and judged"
                )
    return common, [name for name in names if name not in common]


def _best(first: str, contests: Sequence[Contest]) -> dict[str, dict[str, Any]]:
    """Returns, for each suite, the evaluation with the highest pass@1, and its corrected p-value against the first."""
    best = {}
    for suite in dict.fromkeys(one.suite for one in contests):
        top = max((one for one in contests if one.suite == suite), key=lambda one: one.this.value)
        if top.this.value > top.first.value:
            best[suite] = {"folder": top.folder, "pass@1": top.this.value, "p_holm": top.p_holm}
        else:
            best[suite] = {"folder": first, "pass@1": top.first.value, "p_holm": None}
    return best


HEAD: tuple[str, ...] = (
    "suite",
    "evaluation",
    "problems",
    "left out",
    "pass@1",
    "difference",
    "better",
    "worse",
    "p",
    "p, Holm",
    "test",
)


def _rows(first: str, contests: Sequence[Contest]) -> list[list[str]]:
    rows = [list(HEAD)]
    for suite in dict.fromkeys(one.suite for one in contests):
        own = [one for one in contests if one.suite == suite]
        rows.append([suite, first, f"{own[0].problems:,}", "-", _percent(own[0].first), *["-"] * (len(HEAD) - 5)])
        for one in own:
            gap = one.difference
            moved = f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
            counted = [moved, str(one.better), str(one.worse), _p(one.p), _p(one.p_holm), one.test]
            number = [f"{one.problems:,}", f"{one.left_out:,}"]
            rows.append([suite, one.folder, *number, _percent(one.this), *counted])
    return rows


def _lines(first: str, contests: Sequence[Contest], left_out: Sequence[str]) -> list[str]:
    rows = _rows(first, contests)
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [
        *lines,
        *_verdicts(first, contests),
        *([f"left out, not in all: {', '.join(left_out)}"] if left_out else []),
    ]


def _verdicts(first: str, contests: Sequence[Contest]) -> list[str]:
    """Says in words what may be claimed of the best of each suite."""
    words = []
    for suite, best in _best(first, contests).items():
        if best["p_holm"] is None:
            words.append(f"{suite}: none is above {first}")
        else:
            sure = "more than chance" if best["p_holm"] < LEVEL else "not more than chance may do"
            words.append(
                f"{suite}: the best is {best['folder']}, p = {_p(best['p_holm'])} after Holm's correction: {sure}"
            )
    return [*words, *(_owed(first, one) for one in contests if one.left_out)]


def _owed(first: str, one: Contest) -> str:
    return (
        f"{one.suite}: {one.left_out:,} of {one.problems + one.left_out:,} problems are left out between {first} and "
        f"{one.folder}: a sample is missing or has no verdict because a machine failed; the same 'rlkit eval' command "
        "again draws and judges only these"
    )


def _page(first: str, contests: Sequence[Contest], left_out: Sequence[str]) -> str:
    tiles, figures = "", ""
    for suite, best in _best(first, contests).items():
        p = "the first one" if best["p_holm"] is None else f"p = {_p(best['p_holm'])}, corrected"
        tiles += tile(
            f"best on {suite}", f"{100 * best['pass@1']:.1f} %", f"{escape(best['folder'])}<br>{p}", main=True
        )
        own = [one for one in contests if one.suite == suite]
        rows = [as_interval(_short(first), own[0].first)]
        rows += [as_interval(_short(one.folder), one.this) for one in own]
        figures += figure(suite, "pass@1", "bars: 95 % interval of each alone", interval_plot(rows))
    said = "".join(f"<p>{escape(text)}</p>" for text in _verdicts(first, contests))
    skipped = f"<p>Left out, not in all: {escape(', '.join(left_out))}</p>" if left_out else ""
    parts = [
        f'<div class="tiles">{tiles}</div>',
        f"<h2>Differences</h2>{html_table(_rows(first, contests))}{said}{skipped}<p>{escape(METHOD)}</p>",
        f'<div class="figures">{figures}</div>',
    ]
    return page("rlkit eval compare", parts)


def _short(folder: str) -> str:
    """Returns the end of a folder's name, which is where names of checkpoints differ."""
    return folder if len(folder) <= 18 else f"...{folder[-15:]}"


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
