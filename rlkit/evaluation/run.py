"""Evaluation, top to bottom: pose the problems, draw what is missing, judge what has no verdict, estimate, report.

It needs an engine and a reward; no trainer is started. Whatever is done is on the disk at once, so that an evaluation
that was killed, or that gets more samples or suites, does only what it lacks.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import rewards
from rlkit.assemble import engine, reward
from rlkit.config import EvalRun
from rlkit.config.compose import to_yaml
from rlkit.errors import PartDiedError, UserError
from rlkit.evaluation.answering import as_group, await_verdicts, draw, keys_of, not_drawn, not_judged
from rlkit.evaluation.exams import Exam, stated, write_exams
from rlkit.evaluation.measure import measure, write_results
from rlkit.evaluation.parts import Part, all_parts, words_of_model
from rlkit.evaluation.records import (
    REDONE,
    Asked,
    Key,
    Record,
    begin_life,
    check_settings,
    read_settings,
    refuse_changes,
)
from rlkit.evaluation.report import summary, warnings, write_report
from rlkit.evaluation.suites import Suite, read_suites, suite_words
from rlkit.interrupt import INTERRUPTED, leaving_at_once
from rlkit.rollout.judging import FIXES, MAX_MASKED
from rlkit.run.inputs import CONFIG_FILE
from rlkit.run.lock import Lock
from rlkit.run.prepare import check_reward
from rlkit.types import Prompt
from rlkit.watch.console import Console
from rlkit.watch.metrics import write_atomic

GO_ON = "interrupted; the same command goes on from what is stored"


def evaluate_model(cfg: EvalRun) -> None:
    """Measures a model on its suites; writes completions, verdicts, results.json and report.html below `output_dir`.

    Raises UserError, before anything starts, for what cannot work.
    """
    cfg, exams = write_exams(read_suites(cfg), cfg)
    with opened(cfg.output_dir) as console, ExitStack() as stack:
        check_settings(cfg.output_dir, exams)
        records = [Record(cfg.output_dir, exam.suite.name, exam.fingerprint) for exam in exams]
        asked = [keys_of([prompt.id for prompt in exam.prompts], cfg.samples) for exam in exams]
        missing = [not_drawn(record, keys) for record, keys in zip(records, asked, strict=True)]
        words = zip(exams, suite_words(cfg), strict=True)
        posed = {exam.suite.name: Asked(suite=word, samples=cfg.samples, size=cfg.size) for exam, word in words}
        life = begin_life(cfg.output_dir, exams, posed)
        cfg = replace(cfg, suite=words_of_model(cfg, exams[0].settings))
        write_atomic(cfg.output_dir / CONFIG_FILE, to_yaml(cfg))
        for exam, keys in zip(exams, missing, strict=True):
            announce(exam, cfg.samples, len(keys), console)
        sampler = None
        if any(missing):
            with leaving_at_once(GO_ON):
                sampler = stack.enter_context(engine(cfg, Path(cfg.model.path).absolute(), console.bar))
        for exam, record, keys, lacking in zip(exams, records, asked, missing, strict=True):
            judge_stored(exam.suite, record, keys, console)
            if lacking and sampler is not None:
                with reward(exam.suite.reward) as judge:
                    waiting = draw(exam, record, lacking, sampler, judge, life)
                    await_verdicts(waiting, exam.suite, record, console)
        parts = [
            Part(suite=exam.suite, record=record, measured=measure(exam.suite, record, keys, exam.settings))
            for exam, record, keys in zip(exams, records, asked, strict=True)
        ]
        conclude(cfg, parts, console)


def rescore(cfg: EvalRun, given: Collection[str] = ()) -> None:
    """Judges the stored completions of the suites by `cfg.reward`; nothing is drawn, and the model is not needed.

    `given` are the keys that the command states; all else is as it is stored. Raises UserError for a folder without
    completions of these suites, with answers to other problems, or by another model or other settings than stated.
    """
    suites, known = read_suites(cfg), read_settings(cfg.output_dir)
    stored = known["suites"]
    for suite in suites:
        if suite.name not in stored:
            raise UserError(
                f"output_dir={cfg.output_dir} has no completions of suite {suite.name}, only of "
                f"{', '.join(stored) or 'none'}; run the same without --rescore first"
            )
        if stored[suite.name].get("problems") != suite.digest:
            raise UserError(
                f"output_dir={cfg.output_dir} holds completions of suite {suite.name} for other problems than its file "
                "has now; put the file back as it was"
            )
        now = stated(cfg, suite, stored[suite.name], given)
        refuse_changes(cfg.output_dir, suite.name, stored[suite.name], now)
        posed = [Prompt(id=row.id, tokens=(), text=row.question, meta=row.meta) for row in suite.rows]
        with closing(rewards.load(suite.reward.fn, **suite.reward.kwargs)) as judge:
            check_reward(judge, suite.reward, posed)
    with opened(cfg.output_dir) as console:
        parts: list[Part] = []
        for suite in suites:
            record, asked = Record(cfg.output_dir, suite.name), known["asked"].get(suite.name, cfg)
            size = cfg.size if "size" in given else asked.size
            samples = cfg.samples if "samples" in given else asked.samples
            keys = keys_of([row.id for row in suite.asked(size)], samples)
            judge_stored(suite, record, keys, console)
            measured = measure(suite, record, keys, stored[suite.name])
            parts.append(Part(suite=suite, record=record, measured=measured))
        conclude(cfg, parts, console)


def judge_stored(suite: Suite, record: Record, keys: Sequence[Key], console: Console) -> None:
    """Judges the completions that the folder has and the suite's reward has not seen."""
    lines = not_judged(suite, record, keys)
    if not lines:
        return
    console.line(f"{suite.about.title}: {len(lines):,} stored completions to judge by {suite.reward.fn}")
    with reward(suite.reward) as judge:
        await_verdicts({judge(as_group(line, suite)): line for line in lines}, suite, record, console)


def announce(exam: Exam, samples: int, lacking: int, console: Console) -> None:
    """Says what is drawn of a suite, and how."""
    about, drawn, wanted = exam.suite.about, exam.sampling, len(exam.prompts) * samples
    there = f" ({wanted - lacking:,} are there)" if lacking < wanted else ""
    console.line(
        f"{about.title}: {len(exam.prompts):,} problems x {samples} samples, {lacking:,} to draw{there}; temperature "
        f"{drawn.temperature:g}, top_p {drawn.top_p:g}, at most {drawn.max_new_tokens:,} tokens each"
    )
    if exam.shortened:
        console.warn(
            f"{about.title} wants completions of up to {about.sampling.max_new_tokens:,} tokens; behind its longest "
            f"prompt this context has room for {drawn.max_new_tokens:,}"
        )


def conclude(cfg: EvalRun, parts: Sequence[Part], console: Console) -> None:
    """Writes results.json and report.html of these suites and of the folder's others, and prints the table.

    Leaves with code 1 if too much was not judged.
    """
    parts = all_parts(cfg, parts, console)
    measured = [part.measured for part in parts]
    lives = read_settings(cfg.output_dir)["lives"]
    write_results(cfg.output_dir, cfg.model.path, measured, lives)
    page = write_report(cfg, [part.suite for part in parts], [part.record for part in parts], measured, lives)
    for text in [text for one in measured for text in warnings(one)]:
        console.warn(text)
    for line in summary(measured):
        console.line(line)
    console.line(f"report: {page}")
    for one in measured:
        if one.unjudged > max(1, MAX_MASKED * sum(one.reasons.values())):
            reason = next((reason for reason in one.reasons if reason in REDONE), "")
            fix = f"; {FIXES[reason]}" if reason else ""
            print(
                f"error: {one.title}: {one.unjudged:,} completions have no verdict ({reason}){fix}. Then give the same "
                "command again: only these are judged again",
                file=sys.stderr,
            )
            raise SystemExit(1)


@contextmanager
def opened(folder: Path) -> Iterator[Console]:
    """Holds the folder for one evaluation at a time; what ends it early is said in a line, with what is kept."""
    lock = Lock(folder)
    try:
        yield Console()
    except KeyboardInterrupt:
        print(GO_ON, file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except UserError as error:  # of a part on Ray it is Ray's as well, and its text a traceback
        raise getattr(error, "cause", error) from None
    except PartDiedError as error:
        kept = f"completions and verdicts in {folder} are kept, and the same command goes on from there"
        print(f"error: {error}; {kept}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        lock.release()
