"""`rlkit reward test | score | verify-dataset`: look at a reward before a run, and at its verdicts after."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import rewards
from rewards.attacks import ROWS, boxed, fenced, in_tags
from rewards.audit import audit
from rewards.extract import last_boxed
from rlkit.checks import number
from rlkit.errors import UserError
from rlkit.overrides import read_value
from rlkit.watch.console import Console

USAGE = """usage: rlkit reward test NAME [key=value ...] [--data rows.jsonl] [--deadline SECONDS]
       rlkit reward score DATA NAME [key=value ...] [--output FILE]
       rlkit reward verify-dataset DATA NAME [key=value ...] [--completion TEMPLATE] [--least VALUE] [--keep FILE]
       with DATA or --data also [--prompt-column NAME] [--answer-column NAME], as data.* in a run

  test            contract, determinism, pickling, time per sample, hostile texts, known tricks; exit code 1 on a fault
  score           judge the rows of DATA (prompt, completion and other columns) offline, with a summary by reason;
                  exit code 1 if no row gets a verdict
  verify-dataset  judge each row's own gold answer; lists the rows that fail, exit code 1 if there are any

  NAME            math, code, format, ..., package.module:function or file.py:function
  key=value       settings of the reward, as below reward.kwargs in a run
  DATA            a .json, .jsonl or .parquet file, "gsm8k", "math", or a hub id "owner/name\""""
BATCH = 64
SHOWN = 20
"""Rows that fail and are listed one by one."""


def main(argv: Sequence[str]) -> None:
    """Runs one of the three commands; raises SystemExit with code 1 for a fault found, UserError for a mistake."""
    commands = {"test": _test, "score": _score, "verify-dataset": _verify}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if argv[0] not in commands:
        raise UserError(f"'rlkit reward {argv[0]}' is not a command; there are {', '.join(commands)}\n\n{USAGE}")
    if not commands[argv[0]](argv[1:]):
        raise SystemExit(1)


def score(judge: rewards.RewardFunction, samples: Sequence[rewards.Sample], label: str) -> Iterator[rewards.Reward]:
    """Yields the verdicts in order, a batch at a time behind a progress bar.

    Raises RewardError that names the rows on which the reward fails.
    """
    with Console(stream=sys.stderr).bar(label, len(samples), "rows") as bar:
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            try:
                yield from judge(batch)
            except rewards.RewardError as error:
                place = f"rows {start + 1} to {start + len(batch)}"
                raise rewards.RewardError(f"{error} [sample numbers count from 0 within {place}]") from error
            bar.advance(len(batch))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """A dataset row as it is, and as a run gives it to the reward.

    Example: `Offline(record={"problem": "3 + 4", "target": 7}, row={..., "answer": "7"}, prompt="3 + 4")`
    """

    record: Mapping[str, Any]
    row: Mapping[str, Any]
    prompt: Any


def read(source: str, prompt_column: str = "", answer_column: str = "") -> list[Offline]:
    """Reads all rows of a file or named dataset, its splits one after the other; raises UserError if it cannot.

    As in a run, `answer` is text, or the box of a `solution` where there is no such column. Without `prompt_column` the
    prompt is the first of `prompt`, `question`, `problem` and `text`; a row may have none of these, and no answer.
    """
    from rlkit.config import DataConfig  # these load torch, which takes seconds
    from rlkit.data.sources import open_source

    cfg = DataConfig(
        source=source,
        eval_source="",
        train_size=-1,
        eval_size=1,
        tasks={},
        prompt_column=prompt_column or "question",
        answer_column=answer_column or "answer",
        solution_column="solution",
        instruction="",
        seed=0,
    )
    found = open_source(source, cfg, "DATA")
    if found.endless:
        raise UserError(f"DATA={source!r} has no end; give a file of rows")
    columns = prompt_column, answer_column
    rows = [_offline(id, record, *columns) for split in found.splits.values() for id, record in split]
    if not rows:
        raise UserError(f"DATA={source!r} has no rows; use another file or dataset")
    return rows


def _offline(id: str, record: Mapping[str, Any], prompt_column: str, answer_column: str) -> Offline:
    from rlkit.data.rows import answer_of, question_of

    if prompt_column:
        prompt = question_of(id, record, prompt_column)
    else:
        prompt = next((record[name] for name in ("prompt", "question", "problem", "text") if record.get(name)), "")
    row = {"question": prompt, **record} if prompt else dict(record)
    solution = str(record.get("solution", ""))
    # Only a column that was asked for must be there: code has none, and a gold that is null fails as a row of its own.
    if answer_column or record.get("answer") is not None or ("answer" not in record and last_boxed(solution)):
        row["answer"] = answer_of(id, record, answer_column or "answer", solution)
    return Offline(record=record, row=row, prompt=prompt)


def summary(verdicts: Sequence[rewards.Reward], seconds: float) -> str:
    """Writes a table by reason, the means over the verdicts and of their parts, and the time."""
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
    """Writes what a model that knows the gold answer would write.

    `template` holds columns in braces, as `<answer>{answer}</answer>`. Without one: a worked solution (with a box or
    ####) as it is, another `answer` in R1's form, a `canonical_solution` or `code` as a program, a `solution` as it is.
    Raises UserError for a row that has none of these.
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
    raise UserError(
        f"a row has none of answer, canonical_solution, code, solution (its columns: {', '.join(map(str, row))}); give "
        "--completion with the column, as --completion '<answer>{gold}</answer>'"
    )


def _test(argv: Sequence[str]) -> bool:
    parser = _parser("test", "Check a reward before a run.")
    parser.add_argument("--data", help="rows with the columns the reward needs; 8 are used (default: built-in rows)")
    _add_columns(parser)
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for one call (default 30)")
    args = parser.parse_intermixed_args(argv)
    number("--deadline", args.deadline, above=0, fix="30 is the default")
    rows = [one.row for one in read(args.data, args.prompt_column, args.answer_column)] if args.data else ROWS
    findings = []
    for finding in audit(args.name, _settings(args.settings), rows, args.deadline):
        findings.append(finding)
        for label, detail in zip_longest((f"{finding.check:<16} {finding.result:<5}",), finding.details, fillvalue=""):
            print(f"{label:<22} {_printable(detail)}", flush=True)
    faults = sum(finding.result == "FAIL" for finding in findings)
    skipped = [finding.check for finding in findings if finding.result == "skip"]
    if faults:
        print(f"{args.name}: {faults} of {len(findings)} checks found a fault")
    elif skipped:
        print(f"{args.name}: nothing wrong in what was checked; not checked: {', '.join(skipped)}")
    else:
        print(f"{args.name}: no fault found")
    return not faults


def _score(argv: Sequence[str]) -> bool:
    parser = _parser("score", "Judge recorded completions.", data="rows with prompt, completion and other columns")
    parser.add_argument("--output", type=Path, help="write each row with its reward to this .jsonl file")
    args = parser.parse_intermixed_args(argv)
    rows = read(args.data, args.prompt_column, args.answer_column)
    samples = [_recorded(index, one) for index, one in enumerate(rows)]
    verdicts, seconds = _judge(args, samples, "scoring")
    print(summary(verdicts, seconds))
    if args.output:
        judged = zip(rows, verdicts, strict=True)
        _write(args.output, [{**one.record, "reward": asdict(verdict)} for one, verdict in judged])
    return _any_verdict(verdicts)


def _verify(argv: Sequence[str]) -> bool:
    parser = _parser("verify-dataset", "Judge each row's gold answer.", data="rows with gold answers")
    parser.add_argument("--completion", default="", help="how a right completion reads, columns in braces")
    parser.add_argument("--least", type=float, default=1.0, help="what a right answer earns (default 1)")
    parser.add_argument("--keep", type=Path, help="write the rows that pass to this .jsonl file")
    args = parser.parse_intermixed_args(argv)
    number("--least", args.least, fix="1 is the default")
    rows = read(args.data, args.prompt_column, args.answer_column)
    samples = [
        rewards.Sample(one.prompt, honest_completion(one.row, args.completion), meta=one.row, step=0) for one in rows
    ]
    verdicts, seconds = _judge(args, samples, "verifying")
    print(summary(verdicts, seconds))
    failed = [index for index, verdict in enumerate(verdicts) if verdict.value is None or verdict.value < args.least]
    known = [verdict.value for verdict in verdicts if verdict.value is not None]
    never = bool(known) and len(failed) == len(verdicts)  # then it is not the golds, and one row is enough to see why
    for index in failed[: 1 if never else SHOWN]:
        verdict, value = verdicts[index], verdicts[index].value
        shown = "none" if value is None else f"{value:.3g}"
        text = samples[index].completion[-50:]
        print(_printable(f"row {index + 1}: {shown} ({verdict.reason}) for its own gold ...{text!r}"))
    if never:
        print(
            f"no gold earns {args.least:g}, the best earns {max(known):g}: if that is what a right answer earns, give "
            "it as --least VALUE; if not, say with --completion how the reward wants it written"
        )
    elif len(failed) > SHOWN:
        print(f"... and {len(failed) - SHOWN} more")
    print(f"{len(rows) - len(failed)} of {len(rows)} golds earn {args.least:g} or more")
    if args.keep:
        _write(args.keep, [one.record for index, one in enumerate(rows) if index not in set(failed)])
    return _any_verdict(verdicts) and not failed


def _any_verdict(verdicts: Sequence[rewards.Reward]) -> bool:
    """Says whether the reward judged anything; if not, prints it, as a table full of dashes is easily passed over."""
    if any(verdict.value is not None for verdict in verdicts):
        return True
    reasons = Counter(verdict.reason.partition(":")[0] or "no reason" for verdict in verdicts)
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(5))
    print(
        f"no verdict on any of the {len(verdicts)} rows ({counts}): it is the reward that failed, not the completions; "
        "`rlkit reward test` looks for the cause"
    )
    return False


def _parser(command: str, description: str, data: str = "") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"rlkit reward {command}", description=description)
    if data:
        parser.add_argument("data", metavar="DATA", help=f"{data}: a file, gsm8k, math or a hub id")
        _add_columns(parser)
    parser.add_argument("name", metavar="NAME", help="the reward: a name, package.module:function or file.py:function")
    parser.add_argument("settings", metavar="key=value", nargs="*", default=[], help="settings of the reward")
    return parser


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt-column", default="", help="column or template of the prompt, as data.prompt_column")
    parser.add_argument("--answer-column", default="", help="column or template of the gold, as data.answer_column")


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """Reads settings by the rules of a run, so that they mean the same below reward.kwargs."""
    settings = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key.isidentifier():
            short = word.removeprefix("reward.kwargs.")
            raise UserError(f"{word!r} is not a setting; write {short if short != word else 'key=value'}")
        settings[key] = read_value(key, text)
    return settings


def _judge(
    args: argparse.Namespace, samples: Sequence[rewards.Sample], label: str
) -> tuple[list[rewards.Reward], float]:
    with closing(rewards.load(args.name, **_settings(args.settings))) as judge:
        start = time.perf_counter()
        return list(score(judge, samples, label)), time.perf_counter() - start


def _recorded(index: int, one: Offline) -> rewards.Sample:
    row = one.row
    if not isinstance(row.get("completion"), str):
        columns = ", ".join(map(str, one.record))
        raise UserError(f"row {index + 1} has no text in a column `completion` (its columns: {columns}); rename yours")
    own = ("prompt", "completion", "completion_ids", "finish_reason", "step")
    return rewards.Sample(
        one.prompt,
        row["completion"],
        completion_ids=row.get("completion_ids") or (),
        finish_reason=row.get("finish_reason") or "stop",
        meta={key: value for key, value in row.items() if key not in own},
        step=row.get("step"),
    )


def _filled(template: str, row: Mapping[str, Any]) -> str:
    """Fills the columns in, in one pass, so that braces inside a value stay as they are."""
    return re.sub(r"\{([^{}]+)\}", lambda found: str(row[found[1]]) if found[1] in row else found[0], template)


def _cells(values: Sequence[float | None], total: int) -> str:
    known = [value for value in values if value is not None]
    mean = f"{sum(known) / len(known):.3f}" if known else "-"
    return f"{len(values):>8}{f'{100 * len(values) / max(1, total):.1f}%':>8}{mean:>9}{len(values) - len(known):>7}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    # Half a character, which JSON can hold and UTF-8 cannot, is written as it was read, \udxxx.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")
