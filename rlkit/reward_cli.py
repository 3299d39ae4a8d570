"""`rlkit reward test | score | verify-dataset`: look at a reward before a run, and at its verdicts after."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

import rewards
from rewards.attacks import ROWS, boxed, fenced, in_tags
from rewards.audit import audit
from rlkit.watch.console import Console

USAGE = """usage: rlkit reward test NAME [key=value ...] [--data rows.jsonl] [--deadline SECONDS]
       rlkit reward score DATA NAME [key=value ...] [--output FILE]
       rlkit reward verify-dataset DATA NAME [key=value ...] [--completion TEMPLATE] [--keep FILE]

  test            contract, determinism, pickling, time per sample, hostile texts, known tricks; exit code 1 on a fault
  score           judge the rows of DATA (prompt, completion and other columns) offline, with a summary by reason
  verify-dataset  judge each row's own gold answer; lists the rows that fail, exit code 1 if there are any

  NAME            math, code, format, ..., package.module:function or file.py:function
  key=value       settings of the reward, as below reward.kwargs in a run
  DATA            a .json, .jsonl or .parquet file, "gsm8k", "math", or a hub id "owner/name\""""
BATCH = 64
SHOWN = 20
"""Rows that fail, listed one by one."""


def main(argv: Sequence[str]) -> None:
    """Run one of the three commands; raises SystemExit with code 1 for a fault found, ValueError for a mistake."""
    commands = {"test": _test, "score": _score, "verify-dataset": _verify}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if argv[0] not in commands:
        raise ValueError(f"'rlkit reward {argv[0]}' is not a command; there are {', '.join(commands)}\n\n{USAGE}")
    if not commands[argv[0]](argv[1:]):
        raise SystemExit(1)


def score(judge: rewards.RewardFunction, samples: Sequence[rewards.Sample], label: str) -> Iterator[rewards.Reward]:
    """Verdicts in order, a batch at a time behind a progress bar; raises RewardError naming the rows it fails on."""
    with Console(stream=sys.stderr).bar(label, len(samples), "rows") as bar:
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            try:
                yield from judge(batch)
            except rewards.RewardError as error:
                place = f"rows {start + 1} to {start + len(batch)}"
                raise rewards.RewardError(f"{error} [sample numbers count from 0 within {place}]") from error
            bar.advance(len(batch))


def read(source: str) -> list[dict[str, Any]]:
    """All rows of a file or named dataset, its splits one after the other; raises ValueError if it cannot be read.

    A row without an `answer` gets the box of its `solution` for one, as in a run (MATH keeps it there only).
    """
    from rlkit.config import DataConfig  # these load torch, which takes seconds
    from rlkit.data.sources import last_boxed, open_source

    cfg = DataConfig(
        source=source,
        eval_source="",
        train_size=-1,
        eval_size=1,
        tasks={},
        prompt_column="question",
        answer_column="answer",
        solution_column="solution",
        instruction="",
        seed=0,
    )
    found = open_source(source, cfg, "DATA")
    if found.endless:
        raise ValueError(f"DATA={source!r} has no end; give a file of rows")
    rows = [row for split in found.splits.values() for _, row in split]
    if not rows:
        raise ValueError(f"DATA={source!r} has no rows; use another file or dataset")
    for row in rows:
        if "answer" not in row and (box := last_boxed(str(row.get("solution", "")))) is not None:
            row["answer"] = box
    return rows


def summary(verdicts: Sequence[rewards.Reward], seconds: float) -> str:
    """A table by reason, the means over the verdicts and of their parts, and the time."""
    by_reason: dict[str, list[float | None]] = {}
    for verdict in verdicts:
        by_reason.setdefault(verdict.reason or "(no reason)", []).append(verdict.value)
    width = max(map(len, by_reason), default=0) + 2
    lines = [f"{'reason':<{width}}{'rows':>8}{'share':>8}{'mean':>9}{'none':>7}"]
    for reason, values in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        lines.append(f"{reason:<{width}}{_cells(values, len(verdicts))}")
    lines.append(f"{'all':<{width}}{_cells([verdict.value for verdict in verdicts], len(verdicts))}")
    parts: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, value in verdict.parts.items():
            parts.setdefault(name, []).append(value)
    if parts:
        lines.append("parts: " + ", ".join(f"{name} {sum(found) / len(found):.3f}" for name, found in parts.items()))
    lines.append(f"{seconds:.1f} s, {1000 * seconds / max(1, len(verdicts)):.2f} ms a row")
    return "\n".join(lines)


def honest_completion(row: Mapping[str, Any], template: str) -> str:
    """What a model that knows the gold answer would write.

    `template` holds columns in braces, as `<answer>{answer}</answer>`. Without one: a worked solution (with a box or
    ####) as it is, another `answer` in R1's form, a `canonical_solution` or `code` as a program, a `solution` as it is.
    Raises ValueError for a row that has none of these.
    """
    if template:
        return _filled(template, row)
    if "answer" in row:
        answer = str(row["answer"])
        return answer if "\\boxed" in answer or "####" in answer else in_tags(answer)
    if "canonical_solution" in row:
        return fenced(f"{row.get('prompt', '')}{row['canonical_solution']}")
    if "code" in row:
        return fenced(str(row["code"]))
    if "solution" in row:
        solution = str(row["solution"])
        return solution if "\\boxed" in solution or "####" in solution else boxed(solution)
    raise ValueError(
        f"a row has none of answer, canonical_solution, code, solution (its columns: {', '.join(map(str, row))}); give "
        "--completion with the column, as --completion '<answer>{gold}</answer>'"
    )


def _test(argv: Sequence[str]) -> bool:
    parser = _parser("test", "Check a reward before a run.")
    parser.add_argument("--data", help="rows with the columns the reward needs; 8 are used (default: built-in rows)")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for one call (default 30)")
    args = parser.parse_intermixed_args(argv)
    rows = read(args.data) if args.data else ROWS
    results = []
    for finding in audit(args.name, _settings(args.settings), rows, args.deadline):
        results.append(finding.result)
        for label, detail in zip_longest((f"{finding.check:<16} {finding.result:<5}",), finding.details, fillvalue=""):
            print(f"{label:<22} {_printable(detail)}", flush=True)
    faults = results.count("FAIL")
    print(f"{args.name}: {f'{faults} of {len(results)} checks found a fault' if faults else 'no fault found'}")
    return not faults


def _score(argv: Sequence[str]) -> bool:
    parser = _parser("score", "Judge recorded completions.", data="rows with prompt, completion and other columns")
    parser.add_argument("--output", type=Path, help="write each row with its reward to this .jsonl file")
    args = parser.parse_intermixed_args(argv)
    rows = read(args.data)
    samples = [_recorded(index, row) for index, row in enumerate(rows)]
    verdicts, seconds = _judge(args, samples, "scoring")
    print(summary(verdicts, seconds))
    if args.output:
        _write(args.output, [{**row, "reward": asdict(verdict)} for row, verdict in zip(rows, verdicts, strict=True)])
    return True


def _verify(argv: Sequence[str]) -> bool:
    parser = _parser("verify-dataset", "Judge each row's gold answer.", data="rows with gold answers")
    parser.add_argument("--completion", default="", help="how a right completion reads, columns in braces")
    parser.add_argument("--keep", type=Path, help="write the rows that pass to this .jsonl file")
    args = parser.parse_intermixed_args(argv)
    rows = read(args.data)
    samples = [rewards.Sample(_prompt(row), honest_completion(row, args.completion), meta=row) for row in rows]
    verdicts, seconds = _judge(args, samples, "verifying")
    print(summary(verdicts, seconds))
    failed = [index for index, verdict in enumerate(verdicts) if verdict.value is None or verdict.value < 1]
    for index in failed[:SHOWN]:
        verdict, value = verdicts[index], verdicts[index].value
        shown = "none" if value is None else f"{value:.3g}"
        text = samples[index].completion[-50:]
        print(_printable(f"row {index + 1}: {shown} ({verdict.reason}) for its own gold ...{text!r}"))
    if len(failed) > SHOWN:
        print(f"... and {len(failed) - SHOWN} more")
    print(f"{len(rows) - len(failed)} of {len(rows)} golds earn 1 or more")
    if args.keep:
        _write(args.keep, [row for index, row in enumerate(rows) if index not in set(failed)])
    return not failed


def _parser(command: str, description: str, data: str = "") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"rlkit reward {command}", description=description)
    if data:
        parser.add_argument("data", metavar="DATA", help=f"{data}: a file, gsm8k, math or a hub id")
    parser.add_argument("name", metavar="NAME", help="the reward: a name, package.module:function or file.py:function")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="settings of the reward")
    return parser


def _settings(words: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key.isidentifier():
            raise ValueError(f"{word!r} is not a setting; write key=value")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{word!r} cannot be read: {error}; quote the value") from error
    return settings


def _judge(
    args: argparse.Namespace, samples: Sequence[rewards.Sample], label: str
) -> tuple[list[rewards.Reward], float]:
    with closing(rewards.load(args.name, **_settings(args.settings))) as judge:
        start = time.perf_counter()
        return list(score(judge, samples, label)), time.perf_counter() - start


def _recorded(index: int, row: Mapping[str, Any]) -> rewards.Sample:
    if not isinstance(row.get("completion"), str):
        columns = ", ".join(map(str, row))
        raise ValueError(f"row {index + 1} has no text in a column `completion` (its columns: {columns}); rename yours")
    own = ("prompt", "completion", "completion_ids", "finish_reason", "step")
    return rewards.Sample(
        _prompt(row),
        row["completion"],
        completion_ids=row.get("completion_ids") or (),
        finish_reason=row.get("finish_reason") or "stop",
        meta={key: value for key, value in row.items() if key not in own},
        step=row.get("step"),
    )


def _prompt(row: Mapping[str, Any]) -> Any:
    return row.get("prompt") or row.get("question") or row.get("problem") or row.get("text") or ""


def _filled(template: str, row: Mapping[str, Any]) -> str:
    for column, value in row.items():
        template = template.replace(f"{{{column}}}", str(value))
    return template


def _cells(values: Sequence[float | None], total: int) -> str:
    known = [value for value in values if value is not None]
    mean = f"{sum(known) / len(known):.3f}" if known else "-"
    return f"{len(values):>8}{f'{100 * len(values) / max(1, total):.1f}%':>8}{mean:>9}{len(values) - len(known):>7}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")
