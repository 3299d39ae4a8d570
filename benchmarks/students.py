"""Does verification help a student, and does its own practice under a teacher help it more?

    .venv/bin/python -m benchmarks.students --folder outputs/students

Sums of five terms. A teacher is fine-tuned to work half of the sums out and to guess the others; it is right in more
than half of the cases. GRPO makes a better one of it. Then, with `recipes.distill_generate`, the first teacher
answers each of some thousand questions once, at temperature 1.

The student is a dense model of 0.3 M parameters (`model=dense_tiny`, the teacher's tokenizer) that has seen worked-out
and guessed sums alike, which stands for its pre-training.

Filtering: the student is fine-tuned on the verified answers, and another copy of it on unfiltered answers of the same
job, cut to the same number of tokens, for as many epochs; seeds draw the order in which they are shown.

Practice: from the student on verified answers four runs go on for as many steps: SFT on the same answers, SFT on
verified answers of the better teacher, and on-policy distillation under the better and under the first teacher. A step
of practice learns from the student's own rollouts, one of SFT from as many demonstrations.

Every number is held-out accuracy on the same questions, one answer each at temperature 1. The folder keeps every run,
so that the same command goes on where it was. Results: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.timing import machine
from recipes import distill_generate, grpo, on_policy_distill, sft
from rlkit.config import SftRun
from rlkit.config.compose import load_config
from rlkit.data.rows import read_rows
from rlkit.watch.metrics import EVAL, read_metrics

CONSTANT = "{{lr: {lr}, warmup_steps: 4, kind: constant, final_ratio: 1.0}}"
ROLLOUTS = 4
"""Of each prompt of a step of practice; SFT learns from as many demonstrations."""
COSINE = "{{lr: {lr}, warmup_steps: 5, kind: cosine, final_ratio: 0.1}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything."""

    questions: int
    held_out: int
    base_steps: int
    """Of what stands for the student's pre-training."""
    epochs: float
    batch_size: int
    further_steps: int
    prompts: int
    """Of a step of practice."""
    lr: str
    """Of practice."""
    grpo_steps: int
    place: tuple[str, ...]
    """Where the parts run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the students learn from, and what nobody does."""

    questions: Path
    held_out: Path
    verified: Path
    unfiltered: Path


def accuracies(folder: Path) -> dict[str, float]:
    """Held-out accuracy of a run, by the names of its evaluations."""
    return {line["name"]: line["accuracy"] for line in read_metrics(folder) if line["stage"] == EVAL}


def run(recipe: object, folder: Path, words: Sequence[str]) -> dict[str, float]:
    """Runs a recipe to its end, unless it has come there already; returns its accuracies."""
    if not (folder / "model" / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{folder.name}.log").open("a") as log, redirect_stdout(log):
            recipe.main([*words, "logging.tensorboard=false", "checkpoint.keep=1", f"output_dir={folder}"])  # type: ignore[attr-defined]
    found = accuracies(folder)
    print(f"{folder.name}: " + ", ".join(f"{name} {value:.1%}" for name, value in found.items()), flush=True)
    return found


def write_questions(folder: Path, sizes: Sizes) -> tuple[Path, Path]:
    """Writes questions to learn from, and questions that are held out, as two files without a row in common."""
    cut = [f"data.train_size={sizes.questions}", f"data.eval_size={sizes.held_out}", "data.seed=1"]
    split = read_rows(load_config("sft", SftRun, cut).data)
    for name, rows in (("questions", split.train), ("held_out", split.held_out)):
        write_rows(folder / f"{name}.jsonl", [{"question": row.question, "answer": row.answer} for row in rows])
    return folder / "questions.jsonl", folder / "held_out.jsonl"


def write_rows(file: Path, rows: Sequence[dict[str, str]]) -> None:
    """Writes JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answered(journal: Path) -> list[tuple[dict[str, str], bool, int]]:
    """Every answer of a job that was not cut off, in the order of the questions: row, whether it is right, tokens."""
    query = """SELECT q.question, q.answer, t.text, a.correct, a.num_tokens
               FROM answers a JOIN texts t USING (row, sample) JOIN questions q USING (row)
               WHERE a.finish = 'stop' ORDER BY a.row, a.sample"""
    with closing(sqlite3.connect(journal)) as opened:
        found = opened.execute(query).fetchall()
    return [({"question": q, "answer": a, "response": text}, bool(right), size) for q, a, text, right, size in found]


def cut_to(rows: Sequence[tuple[dict[str, str], int]], tokens: int) -> list[dict[str, str]]:
    """Takes rows from the front as long as all of them together have at most so many tokens."""
    kept: list[dict[str, str]] = []
    for row, size in rows:
        tokens -= size
        if tokens < 0:
            break
        kept.append(row)
    return kept


def make_data(folder: Path, teacher: Path, sizes: Sizes) -> Files:
    """Lets the teacher answer every question once; writes what is right, and as many tokens of what comes."""
    folder.mkdir(exist_ok=True)
    questions, held_out = write_questions(folder, sizes)
    job = folder / "job"
    if not (job / "dataset").exists():
        words = [f"model.path={teacher}", f"data={questions}", "data.eval_size=0", "cleaning.tests=[]"]
        words += ["samples=1", "sampling.temperature=1.0", "sampling.top_p=1.0", f"output_dir={job}"]
        with (folder / "job.log").open("a") as log, redirect_stdout(log):
            distill_generate.main([*words, *[word for word in sizes.place if not word.startswith("trainer")]])
    every = answered(job / "journal.sqlite")
    right = [(row, size) for row, correct, size in every if correct]
    tokens = sum(size for _, size in right)
    unfiltered = cut_to([(row, size) for row, _, size in every], tokens)
    files = Files(
        questions=questions,
        held_out=held_out,
        verified=folder / "verified.jsonl",
        unfiltered=folder / "unfiltered.jsonl",
    )
    write_rows(files.verified, [row for row, _ in right])
    write_rows(files.unfiltered, unfiltered)
    print(f"{len(every)} answers, {len(right)} right ({tokens} tokens); as many tokens unfiltered: {len(unfiltered)}")
    return files


def sft_words(files: Files, rows: Path, sizes: Sizes, seed: int) -> list[str]:
    """Settings of SFT on whole responses."""
    return [
        *(f"data={rows}", "data.response_column=response", f"data.eval_source={files.held_out}"),
        *(f"data.eval_size={sizes.held_out}", f"sft.batch_size={sizes.batch_size}", f"seed={seed}", *sizes.place),
    ]


def fine_tune(folder: Path, files: Files, student: Path, sizes: Sizes, seed: int) -> dict[str, float]:
    """Trains two copies of the student, on verified and on unfiltered answers; returns the accuracies of all three."""
    row: dict[str, float] = {}
    for name, data in (("verified", files.verified), ("unfiltered", files.unfiltered)):
        words = [*sft_words(files, data, sizes, seed), f"model.path={student}", "sft.steps=0"]
        words += [f"sft.epochs={sizes.epochs}", f"sft.schedule={COSINE.format(lr='1e-3')}"]
        found = run(sft, folder / f"{name}-{seed}", words)
        row |= {"student": found["before SFT"], name: found["after SFT"]}
    return row


def practise(
    folder: Path, files: Files, shown: dict[str, Path], teachers: dict[str, Path], sizes: Sizes, seed: int
) -> dict[str, float]:
    """Goes on from the student on verified answers, by SFT on each of the rows and under each of the teachers."""
    steps, student = sizes.further_steps, folder / f"verified-{seed}" / "model"
    found = {"student": accuracies(student.parent)["after SFT"]}
    for name, rows in shown.items():
        words = [*sft_words(files, rows, sizes, seed), f"model.path={student}", f"sft.steps={steps}"]
        words += [f"sft.schedule={CONSTANT.format(lr='1e-3')}", f"sft.batch_size={ROLLOUTS * sizes.prompts}"]
        found[name] = run(sft, folder / f"{name}-{seed}", words)["after SFT"]
    for name, teacher in teachers.items():
        words = [f"model.path={student}", f"teacher.path={teacher}", f"data={files.questions}"]
        words += [f"data.eval_source={files.held_out}", f"data.eval_size={sizes.held_out}", f"seed={seed}"]
        words += [f"on_policy.steps={steps}", f"on_policy.prompts_per_step={sizes.prompts}"]
        words += [f"on_policy.samples={ROLLOUTS}", f"on_policy.schedule={CONSTANT.format(lr=sizes.lr)}"]
        words += ["checkpoint.every=0", *sizes.place]
        found[name] = run(on_policy_distill, folder / f"{name}-{seed}", words)["after distillation"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the teachers, makes the data, trains the students, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/students"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--practice-seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--teacher", type=Path, help="the model folder of an imperfect teacher, if there is one")
    parser.add_argument("--questions", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--base-steps", type=int, default=400)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--further-steps", type=int, default=40)
    parser.add_argument("--lr", default="2e-4", help="of practice")
    parser.add_argument("--grpo-steps", type=int, default=16)
    parser.add_argument("place", nargs="*", default=["cluster=local", "engine=torch", "trainer=torch"])
    given = parser.parse_args(arguments)
    sizes = Sizes(
        questions=given.questions,
        held_out=given.held_out,
        base_steps=given.base_steps,
        epochs=given.epochs,
        batch_size=64,
        further_steps=given.further_steps,
        prompts=32,
        lr=given.lr,
        grpo_steps=given.grpo_steps,
        place=tuple(given.place),
    )
    folder, before = given.folder.absolute(), machine()
    folder.mkdir(parents=True, exist_ok=True)
    teacher = given.teacher.absolute() if given.teacher else folder / "teacher" / "model"
    if not given.teacher:
        run(sft, teacher.parent, ["sft.steps=350", "sft.think_share=0.5", *sizes.place])
    better = folder / "better"
    run(grpo, better, [f"model.path={teacher}", f"algo.steps={sizes.grpo_steps}", *sizes.place])
    files = make_data(folder, teacher, sizes)
    shown = {"sft": files.verified, "sft-better": make_data(folder / "from-better", better / "model", sizes).verified}
    base = folder / "base"
    words = ["model=dense_tiny", f"model.tokenizer={teacher}", f"sft.steps={sizes.base_steps}", "sft.think_share=0.5"]
    run(sft, base, [*words, *sizes.place])
    filtered: dict[str, dict[str, float]] = {}
    practised: dict[str, dict[str, float]] = {}
    for seed in given.seeds:
        filtered[f"{seed}"] = fine_tune(folder, files, base / "model", sizes, seed)
    print_table(filtered, "verified", "unfiltered")
    teachers = {"under-better": better / "model", "under-first": teacher}
    for seed in given.practice_seeds:
        practised[f"{seed}"] = practise(folder, files, shown, teachers, sizes, seed)
        print_table(practised, "under-better", "sft")
        print_table(practised, "under-better", "sft-better")
    print(f"before: {before}; after: {machine()}; {' '.join(sys.argv[1:])}")


def print_table(rows: dict[str, dict[str, float]], one: str, other: str) -> None:
    """Prints accuracies by seed, and the difference of two of them."""
    names = list(next(iter(rows.values())))
    print(f"\n| seed | {' | '.join(names)} | {one} - {other} |\n|{'---|' * (len(names) + 2)}")
    mean = {name: fmean(row[name] for row in rows.values()) for name in names}
    for label, row in {**rows, "mean": mean}.items():
        numbers = [f"{row[name]:.1%}" for name in names]
        print(f"| {label} | {' | '.join(numbers)} | {100 * (row[one] - row[other]):+.1f} points |", flush=True)


if __name__ == "__main__":
    main()
