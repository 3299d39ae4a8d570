"""What the terminal shows: bars, rows that line up, warnings that do not repeat."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.watch.console import Console, read_warnings, step_header, step_line

GRPO = {
    "reward": 0.512, "accuracy": 0.498, "kl": 1.2e-3, "clip_fraction": 0.012, "entropy": 0.81, "length": 123.4,
    "parity": 3.1e-6, "sample_tok_s": 1234.0, "train_tok_s": 12345.0, "sample_s": 12.34, "score_s": 0.1,
    "train_s": 8.2, "sync_s": 0.33, "groups": 16, "flat_groups": 3,
}  # fmt: skip
TAUGHT = {key: value for key, value in GRPO.items() if key not in ("kl", "clip_fraction", "flat_groups")}
TAUGHT |= {"reverse_kl": -1.23e-2, "teach_s": 4.56, "teach_tok_s": 777.0}
SFT = {"loss": 1.234, "lr": 1e-4, "grad_norm": 0.7, "tok_s": 5120.0}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def isatty(self) -> bool:
        return True


class Ascii(io.StringIO):
    encoding = "ascii"  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


def work(console: Console, clock: Clock, total: int, seconds: float) -> None:
    """Do `total` things that take `seconds` together."""
    with console.bar("sampling", total, "prompts") as bar:
        for _ in range(total):
            clock.now += seconds / total
            bar.advance()


def test_a_bar_in_a_log_is_a_plain_line_every_fifteen_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    work(Console(stream=stream, clock=clock), clock, total=60, seconds=60.0)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "sampling: 5/60 prompts (8%), 00:05 so far, about 00:55 left",
        "sampling: 20/60 prompts (33%), 00:20 so far, about 00:40 left",
        "sampling: 35/60 prompts (58%), 00:35 so far, about 00:25 left",
        "sampling: 50/60 prompts (83%), 00:50 so far, about 00:10 left",
    ]


def test_the_time_left_assumes_the_pace_so_far() -> None:
    stream, clock = io.StringIO(), Clock()
    with Console(stream=stream, clock=clock).bar("training", 100, "tokens") as bar:
        clock.now += 30
        bar.set(25)  # 25 in 30 s: the other 75 take 90 s
    assert stream.getvalue() == "training: 25/100 tokens (25%), 00:30 so far, about 01:30 left\n"


def test_short_work_is_silent_in_a_log() -> None:
    stream, clock = io.StringIO(), Clock()
    work(Console(stream=stream, clock=clock), clock, total=100, seconds=4.9)
    assert stream.getvalue() == ""


def test_a_log_has_no_control_characters() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(stream=stream, clock=clock)
    work(console, clock, total=60, seconds=60.0)
    console.line("a completion with \x1b[2J\r and \x07 in it\tand a tab")
    console.warn("careful")
    console.step("grpo", 1, 9, GRPO)
    console.close()
    assert not re.search(r"[^\n\t\x20-\x7e]", stream.getvalue())
    assert "\\x1b[2J\\x0d and \\x07 in it\tand a tab\n" in stream.getvalue()


def test_a_stream_that_cannot_write_a_letter_gets_an_escape() -> None:
    stream = Ascii()
    Console(stream=stream).line("x \u2192 y")
    assert stream.getvalue() == "x \\u2192 y\n"


def test_a_terminal_shows_a_bar_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    console = Console(stream=stream, clock=clock)
    with console.bar("sampling", 10, "prompts") as bar:
        clock.now += 0.9
        bar.advance()
        assert stream.getvalue() == ""
        clock.now += 9.1
        bar.set(5)
        assert re.search(r"sampling +50%\|.*\| 5/10 prompts, 00:10 so far, 00:\d\d left", stream.getvalue())
        console.line("in between")
    above, _, rest = stream.getvalue().partition("in between\n")
    assert above.endswith("\r"), "the bar is wiped before a line is printed"
    assert "5/10" in rest, "the bar comes back under the line"
    assert rest.split("\r")[-2].strip() == "", "nothing of the bar stays"


def test_short_work_is_silent_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    work(Console(stream=stream, clock=clock), clock, total=100, seconds=0.9)
    assert stream.getvalue() == ""


def test_a_bar_leaves_the_terminal_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    console = Console(stream=stream, clock=clock)
    with pytest.raises(RuntimeError), console.bar("sampling", 10, "prompts") as bar:
        clock.now += 5
        bar.advance()
        raise RuntimeError
    console.line("after")
    assert stream.getvalue().endswith("\rafter\n")


def test_a_warning_is_printed_once_and_counted(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(tmp_path, stream=stream)
    for _ in range(3):
        console.warn("a reward timed out: raise reward.timeout")
    console.warn("another")
    assert stream.getvalue() == "warning: a reward timed out: raise reward.timeout\nwarning: another\n"
    console.close()
    assert stream.getvalue().endswith("warning (3 times): a reward timed out: raise reward.timeout\n")
    assert "(1 times)" not in stream.getvalue()
    assert read_warnings(tmp_path) == {"a reward timed out: raise reward.timeout": 3, "another": 1}


def test_a_resumed_run_goes_on_counting_warnings(tmp_path: Path) -> None:
    for _ in range(2):
        stream = io.StringIO()
        Console(tmp_path, stream=stream).warn("again")
        assert stream.getvalue() == "warning: again\n", "each process prints it"
    assert json.loads((tmp_path / "warnings.json").read_text()) == {"again": 2}


def test_a_console_without_a_folder_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Console(stream=io.StringIO()).warn("x")
    assert list(tmp_path.iterdir()) == []


def test_a_grpo_row_reads_like_a_table() -> None:
    over, titles, row = step_line("grpo", 1, 200, GRPO).splitlines()
    assert titles.split() == [
        "grpo", "step", "reward", "acc", "KL", "clip", "entropy", "length", "parity", "sample", "train",
        "sample", "score", "train", "sync", "flat",
    ]  # fmt: skip
    assert row.split() == [
        "1/200", "0.512", "49.8%", "1.2e-03", "1.2%", "0.810", "123", "3.1e-06", "1234", "12k",
        "12.3", "0.10", "8.20", "0.33", "3/16",
    ]  # fmt: skip
    ends = [match.end() for match in re.finditer(r"\S+", titles)][1:]
    assert [match.end() for match in re.finditer(r"\S+", row)] == ends, "cells end where their titles end"
    tokens, seconds = over.index("tok/s"), over.index("seconds")
    assert titles.index(" sample") < tokens < titles.index("score") < seconds < len(titles)
    assert max(map(len, (over, titles, row))) <= 110


def test_an_sft_row_reads_like_a_table() -> None:
    titles, row = step_line("sft", 1, 40, SFT).splitlines()
    assert row.split() == ["1/40", "1.234", "1.0e-04", "0.700", "5120"]
    assert re.findall(r"\S+(?: \S+)*", titles)[1:] == ["step", "loss", "lr", "grad norm", "tok/s"]
    assert len(titles) == len(row) <= 110


def test_the_header_comes_back_every_twenty_steps() -> None:
    with_header = [step for step in range(1, 101) if "\n" in step_line("sft", step, 100, SFT)]
    assert with_header == [1, 21, 41, 61, 81]


def test_the_first_row_after_a_resume_has_a_header_too() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    for step in (7, 8):
        console.step("sft", step, 100, SFT)
    console.step("grpo", 1, 100, GRPO)
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["sft", "7/100", "8/100", "--", "grpo", "1/100"]


def test_a_step_without_signal_says_so_in_words() -> None:
    values = {"reward": 1.0, "accuracy": 1.0, "groups": 16, "flat_groups": 16, "sample_s": 2.0}
    row = step_line("grpo", 2, 9, values)
    assert row.split()[:3] == ["2/9", "1.000", "100.0%"]
    assert "skipped: in all 16 groups every reward is equal" in row
    assert len(row) <= 110
    assert "skipped" not in step_line("grpo", 2, 9, values | {"flat_groups": 15})


def test_what_the_reward_said_stands_behind_the_row() -> None:
    said = {"reason/wrong": 28, "reason/timeout": 5, "reason/correct": 31}
    row = step_line("grpo", 2, 9, GRPO | said)
    assert row == step_line("grpo", 2, 9, GRPO) + "  correct 31 wrong 28 timeout 5"
    flat = {"reward": 0.0, "accuracy": 0.0, "groups": 16, "flat_groups": 16}
    more = {"mtp_loss": 1.2041, "drafts_accepted": 0.806}
    assert step_line("grpo", 2, 9, GRPO | more | said).endswith(
        "  mtp 1.204  drafts 81%  correct 31 wrong 28 timeout 5"
    )
    assert step_line("grpo", 2, 9, flat | {"reason/no_code": 64}).endswith("nothing to learn  no_code 64")


def test_the_load_of_the_busiest_expert_stands_before_them() -> None:
    load = {"max_violation": 1.3149, "max_violation/1": 1.3149, "mean_violation": 0.1}
    assert step_line("sft", 2, 9, SFT | load) == step_line("sft", 2, 9, SFT) + "  load 1.31x"
    assert step_line("grpo", 2, 9, GRPO | load | {"reason/wrong": 3}).endswith("  load 1.31x  wrong 3")


def test_of_many_verdicts_the_most_frequent_are_named() -> None:
    said = {f"reason/r{i}": i for i in range(1, 10)}
    assert step_line("grpo", 2, 9, GRPO | said).endswith("  r9 9 r8 8 r7 7 r6 6 r5 5 r4 4 other 6")


def test_a_missing_number_is_a_dash() -> None:
    row = step_line("sft", 2, 9, {"loss": 1.0})
    assert row.split() == ["2/9", "1.000", "-", "-", "-"]


def test_a_missing_reference_is_a_dash_and_no_zero() -> None:
    values = {key: value for key, value in GRPO.items() if key != "kl"}
    assert step_line("grpo", 2, 9, values).split()[3] == "-"
    assert len(step_line("grpo", 2, 9, values)) == len(step_line("grpo", 2, 9, GRPO))


@pytest.mark.parametrize("stage", ["grpo", "cold-start", "reasoning-rl", "s", "a stage with a long name of its own"])
@pytest.mark.parametrize("values", [GRPO, SFT])
def test_the_numbers_choose_the_table_and_not_the_name_of_the_stage(stage: str, values: dict[str, float]) -> None:
    *over, titles, row = step_line(stage, 1, 40, values).splitlines()
    *_, known_titles, known_row = step_line("sft", 1, 40, values).splitlines()
    assert row == known_row
    assert titles.split()[-len(known_titles.split()) + 2 :] == known_titles.split()[2:] and len(titles) == len(row)
    above, left = "\n".join([*over, titles]), [line.strip() for line in (*over, titles)]
    assert any(line.startswith(stage) for line in left), "the name of the stage heads its table"
    if values is GRPO:
        assert above.index("tok/s") == "\n".join(step_header("grpo", GRPO)).index("tok/s")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"margin": 0.25}, "  margin 0.25"),
        ({"better_tokens": 0.4375, "value_loss": 1.25e-7}, "  better_tokens 0.4375  value_loss 1.25e-07"),
        ({"balance_loss": 0.0123456, "max_violation": 1.5}, "  load 1.50x  balance_loss 0.01235"),
        ({"pairs": 64, "reason/correct": 3}, "  pairs 64  correct 3"),
        ({"broken": float("nan"), "ended": float("inf")}, "  broken nan  ended inf"),
        ({"mtp_loss": 1.0, "draft_kl": 0.5}, "  mtp 1.000  draft_kl 0.5"),
        ({"max_violation/3": 1.5, "part/format": 0.5, "log/steps": 3, "probe/a/b": 1}, ""),
        ({"tokens": 4096, "mean_violation": 0.2, "weight_version": 3, "truncated": 0.5}, ""),
    ],
)
@pytest.mark.parametrize("table", [GRPO, SFT])
def test_a_number_that_no_table_knows_stands_behind_the_row(
    table: dict[str, float], values: dict[str, float], shown: str
) -> None:
    assert step_line("any", 2, 9, table | values) == step_line("any", 2, 9, table) + shown


def test_a_number_of_one_table_is_shown_in_the_other() -> None:
    row = step_line("reward-model", 2, 9, SFT | {"accuracy": 0.5, "length": 12.5})
    assert row == step_line("x", 2, 9, SFT) + "  accuracy 0.5  length 12.5"


def test_numbers_without_a_table_are_named() -> None:
    values = {"tokens_kept": 0.6931471, "teacher_tok_s": 812.0, "layer/1": 3.0}
    assert step_header("distill", values) == []
    assert step_line("distill", 1, 9, values) == "distill 1/9  tokens_kept 0.6931  teacher_tok_s 812"


def grpo_row(values: list[float]) -> str:
    return step_line("grpo", 1000, 10000, dict(zip(GRPO, values, strict=False)) | {"groups": 1024, "flat_groups": 512})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=13, max_size=13))
def test_cells_never_touch(values: list[float]) -> None:
    assert len(grpo_row(values).split()) == len(step_header("grpo", GRPO)[-1].split()) - 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e30) | st.just(float("nan")) | st.just(float("inf")), min_size=13, max_size=13))
def test_rows_of_what_can_be_measured_never_grow(values: list[float]) -> None:
    assert len(grpo_row(values)) == len(step_header("grpo", GRPO)[-1])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_printed(text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", newline="")
    Console(stream=stream).line(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", stream.buffer.getvalue().decode("latin-1"))  # pyright: ignore[reportAttributeAccessIssue]


def test_a_step_under_a_teacher_has_a_table_of_its_own() -> None:
    row = step_line("on_policy", 2, 50, TAUGHT)
    assert row.split()[:4] == ["2/50", "-1.2e-02", "49.8%", "0.810"] and " 4.56" in row and "777" not in row
    over, titles = step_header("on_policy", TAUGHT)
    assert over.startswith("on_policy") and "seconds" in over and len(titles) == len(row)
    names = ["step", "rev.", "KL", "acc", "entropy", "length", "parity", "sample", "train", "sample", "teach", "train"]
    assert titles.split() == [*names, "sync"]
    assert step_header("grpo", GRPO)[-1].split()[1:5] == ["step", "reward", "acc", "KL"], "GRPO's is as it was"
