"""The report of a pipeline: its table, its links, and one curve over the steps of all stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

from rlkit.multistage.ledger import StageRow
from rlkit.multistage.page import curves, write_page
from rlkit.multistage.stage import Made
from rlkit.multistage.table import HEAD
from rlkit.watch.evaluations import wilson
from tests.multistage.written import finished, row, shards


def stage(folder: Path, *lines: dict[str, object]) -> Made:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"elapsed_s": 1.0} | line) + "\n" for line in lines))
    return Made(folder=folder)


def test_steps_of_stages_are_laid_end_to_end(tmp_path: Path) -> None:
    first = stage(
        tmp_path / "1",
        {"stage": "sft", "step": 1, "loss": 2.0},
        {"stage": "sft", "step": 2, "loss": 1.0},
        {"stage": "eval", "step": 2, "name": "after SFT", "accuracy": 0.25},
        {"stage": "grpo", "step": 1, "accuracy": 0.5},  # a stage within the run counts anew
    )
    second = stage(
        tmp_path / "2",
        {"stage": "eval", "step": 0, "name": "before GRPO", "accuracy": 0.5},
        {"stage": "grpo", "step": 1, "accuracy": 0.75},
    )
    points, starts = curves([first, second])
    assert starts == [0, 3]
    assert points == {"accuracy": [(3.0, 0.5), (4.0, 0.75)], "eval": [(2.0, 0.25), (3.0, 0.5)]}


def test_what_a_reward_model_gets_right_is_no_point_of_the_curve(tmp_path: Path) -> None:
    scorer = stage(
        tmp_path / "1",
        {"stage": "eval", "step": 0, "name": "before training", "accuracy": 0.5},
        {"stage": "reward_model", "step": 1, "accuracy": 0.5},
        {"stage": "reward_model", "step": 2, "accuracy": 0.9},
    )
    policy = stage(tmp_path / "2", {"stage": "grpo", "step": 1, "accuracy": 0.75})
    assert curves([scorer, policy]) == ({"accuracy": [(3.0, 0.75)], "eval": []}, [0, 2])


class Reader(HTMLParser):
    """Says which tags are open, what is linked, and what text stands in which tag; refuses tags that cross."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for key, value in attrs if key == "href" and value]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def read(folder: Path, name: str, rows: Sequence[StageRow], made: Sequence[Made]) -> Reader:
    path = write_page(folder, name, rows, made)
    assert path == folder / "report.html"
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == [], "every tag is closed"
    return reader


def test_the_report_has_rows_links_and_accuracies(tmp_path: Path) -> None:
    made = [finished(tmp_path / "1-rl"), finished(tmp_path / "2-again")]
    rows = [
        row(before=0.25, after=0.5, tokens=600, seconds=9.25),
        row(stage="again", before=0.125, after=0.875, rows=1234, tokens=1_000_000, seconds=3661.0),
    ]
    page = read(tmp_path, "r1_zero", rows, made)
    assert page.of("h1") == ["rlkit: r1_zero"] == page.of("title")
    assert page.links == ["1-rl/report.html", "2-again/report.html"] and page.of("a") == ["rl", "again"]
    assert page.of("th") == [title for title in HEAD if title]
    cells = page.of("td")
    assert cells[:5] == ["grpo", "25.0%", "-> 50.0%", "600", "0:09"]
    assert cells[5:] == ["grpo", "12.5%", "-> 87.5%", "1,234", "1,000,000", "1:01:01"]
    whole = " ".join(text for _, text in page.texts)
    assert "Accuracy over all stages" in whole and "rl from step 0, again from step 3" in whole
    assert "sampled while training" in whole and "held out" in whole


def test_the_last_evaluation_of_each_stage_is_shown_with_its_interval(tmp_path: Path) -> None:
    """50 of 100: Wilson's interval is 40.4 % to 59.6 %."""
    made = finished(tmp_path / "1-rl")
    page = read(tmp_path, "r1_zero", [row()], [made])
    whole = " ".join(text for _, text in page.texts)
    assert "the last evaluation of each stage; bars are 95 % intervals" in whole
    low, high = wilson(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert "50" in whole


def test_a_stage_without_numbers_has_a_row_and_no_figure(tmp_path: Path) -> None:
    shards(tmp_path / "1-data", [2])
    page = read(tmp_path, "own", [row(stage="data", recipe="distill_generate", rows=2)], [Made(folder=tmp_path / "x")])
    assert page.of("td") == ["distill_generate", "2", "0", "0:00"] and page.of("h2") == ["Stages"]


def test_names_are_text_and_no_tags(tmp_path: Path) -> None:
    made = Made(folder=tmp_path / '1-a"b<i>')
    page = read(tmp_path, "<b>mine</b>", [row(stage="<script>", recipe="a & b")], [made])
    assert page.of("h1") == ["rlkit: <b>mine</b>"] and page.of("a") == ["<script>"]
    assert page.links == ['1-a"b<i>/report.html'] and page.of("td")[0] == "a & b"
    assert not page.of("script") and not page.of("b")


def test_a_step_without_an_accuracy_takes_its_place_and_shows_none(tmp_path: Path) -> None:
    made = stage(
        tmp_path / "1",
        {"stage": "grpo", "step": 1, "accuracy": 0.5},
        {"stage": "grpo", "step": 2, "accuracy": float("nan")},
        {"stage": "grpo", "step": 3, "accuracy": 0.75},
    )
    points, starts = curves([made, Made(folder=tmp_path / "absent"), made])
    assert starts == [0, 3, 3]
    assert points == {"accuracy": [(1.0, 0.5), (3.0, 0.75), (4.0, 0.5), (6.0, 0.75)], "eval": []}
