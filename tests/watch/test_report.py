"""The report shows what the files say, shows text as text, and needs nothing but itself."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlkit.watch import Console, Evaluation, Metrics, SampleText, write_evaluation, write_report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;</pre></style><!--"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a browser makes of the report: tags in balance, and the text a person reads, by element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.comments: list[str] = []
        self.found: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))
            for key in (tag, f"{tag}.{self.open[-1][1]}"):
                self.found.setdefault(key, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for tag, kind in self.open:
            for key in {tag, f"{tag}.{kind}"}:
                self.found[key][-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def all(self, key: str) -> list[str]:
        return self.found.get(key, [])


def sample(question: str, correct: bool, completion: str = "7", reason: str = "") -> SampleText:
    return SampleText(
        question=question,
        answer="7",
        completion=completion,
        correct=correct,
        reason=reason or ("wrong", "correct")[correct],
    )


def evaluate(folder: Path, name: str, samples: Sequence[SampleText], truncated: float = 0.0) -> None:
    right = sum(one.correct for one in samples)
    write_evaluation(
        folder,
        Evaluation(
            name=name,
            step=1,
            accuracy=right / len(samples),
            problems=len(samples),
            mean_length=9.0,
            truncated=truncated,
            samples=tuple(samples),
        ),
    )


def grpo(step: int, **changes: float) -> dict[str, float]:
    values = {
        "reward": 0.5, "accuracy": 0.4, "kl": 1e-3 * step, "clip_fraction": 0.01, "entropy": 0.7, "length": 50.0,
        "parity": 1e-6 * step, "logprob_gap": 2e-6, "grad_norm": 0.3, "loss": 0.0, "lr": 3e-6, "sample_tok_s": 2000.0,
        "train_tok_s": 5000.0, "sample_s": 3.0, "score_s": 0.1, "train_s": 2.0, "sync_s": 0.3, "groups": 8,
        "reason/correct": 26, "reason/wrong": 38, "reward_p50_s": 0.002, "reward_p99_s": 0.1,
        "flat_groups": 2, "masked": 0, "truncated": 0, "weight_version": step,
    }  # fmt: skip
    return values | changes


def run(folder: Path, sft: int = 5, steps: int = 6) -> None:
    """A run folder like the loops leave it."""
    with Metrics(folder, tensorboard=False, resume_after=None) as metrics:
        for step in range(1, sft + 1):
            metrics.write(
                "sft", step, {"loss": 2 / step, "lr": 1e-4, "grad_norm": 1.0, "tok_s": 5000.0, "entropy": 0.5}
            )
        for step in range(1, steps + 1):
            metrics.write("grpo", step, grpo(step))


def page(folder: Path, title: str = "a run") -> Page:
    return Page(write_report(folder, title).read_text(encoding="utf-8"))


def test_the_headline_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("rlkit.watch.metrics.time.monotonic", lambda: now[0])
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        metrics.write("sft", 40, {"loss": 1.0})
        metrics.write("grpo", 1, grpo(1, parity=3e-6))
        metrics.write("grpo", 2, grpo(2, parity=8e-5))
        now[0] = 3725.0
        metrics.write("grpo", 3, grpo(3, parity=2e-6))
    # 81 of 263: Newcombe (1998), table I, gives 0.2553 to 0.3662.
    evaluate(tmp_path, "before SFT", [sample(f"q{n}", False) for n in range(263)])
    evaluate(tmp_path, "after GRPO", [sample(f"q{n}", n < 81) for n in range(263)])
    tiles = page(tmp_path).all("div.tile main") + page(tmp_path).all("div.tile")
    assert tiles == [
        "accuracy before SFT0.0 %95 % interval 0.0 to 1.4263 held-out problems",
        "accuracy after GRPO30.8 %95 % interval 25.5 to 36.6263 held-out problems",
        "wall time1 h 02 min40 SFT + 3 GRPO steps",
        "largest parity gap8.0e-05nats, at GRPO step 2engine against trainer",
    ]


def test_every_curve_has_a_title_and_a_unit(tmp_path: Path) -> None:
    run(tmp_path)
    evaluate(tmp_path, "before SFT", [sample(f"q{n}", False) for n in range(30)])
    evaluate(tmp_path, "after GRPO", [sample(f"q{n}", True) for n in range(30)])
    shown = page(tmp_path)
    assert shown.all("h2") == ["Held-out results", "SFT", "GRPO", "Samples"]
    assert shown.all("h3") == [
        "Accuracy problems solved", "Completion length share of completions",
        "Loss nats per token", "Entropy nats per token", "Gradient norm L2 norm", "Learning rate per step",
        "Speed tokens per second",
        "Reward and accuracy mean of the step", "Verdicts share of rollouts", "Reward time seconds",
        "Flat groups share of groups", "Completion length tokens", "Loss what the optimiser lowers",
        "KL divergence nats per token", "Entropy nats per token", "Clipped tokens share of tokens", "Parity nats",
        "Gradient norm L2 norm", "Learning rate per step", "Time of a step seconds", "Speed tokens per second",
    ]  # fmt: skip
    assert len(shown.all("svg")) == len(shown.all("h3"))
    [parity] = [figure for figure in shown.all("figure") if figure.startswith("Parity")]
    assert "10-6" in parity, "it is on a log axis"


def test_text_of_the_model_is_only_text(tmp_path: Path) -> None:
    """Markup in every place that a model, a data set or a user can write to."""
    run(tmp_path, sft=0, steps=1)
    for name in (f"before {EVIL}", f"after {EVIL}"):
        evaluate(
            tmp_path, name,
            [SampleText(question=EVIL, answer=EVIL, completion=EVIL, correct=False, reason=f"bad{EVIL}: {EVIL}")] * 2
            + [sample(f"q{n}", False, completion=EVIL) for n in range(30)],
        )  # fmt: skip
    Console(tmp_path, stream=io.StringIO()).warn(EVIL)
    (tmp_path / "config.yaml").write_text(f"data: {EVIL}")
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        metrics.write(f"stage {EVIL}", 1, {"loss": math.nan})
    html = write_report(tmp_path, EVIL).read_text()
    shown = Page(html)
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script", "img", "iframe", "object", "link"})
    attributes = {name for _, given in shown.tags for name in given}
    assert not [name for name in attributes if name.startswith("on")]
    assert shown.comments == []
    assert shown.all("title") == shown.all("h1") == [EVIL]
    assert shown.all("pre") == [EVIL] * 48 + [f"data: {EVIL}"], "24 questions, two evaluations"
    assert any(text.startswith(EVIL) for text in shown.all("li"))
    assert any(EVIL in text for text in shown.all("p.question"))


def test_the_report_needs_nothing_but_itself(tmp_path: Path) -> None:
    run(tmp_path)
    html = write_report(tmp_path, "a run").read_text()
    shown = Page(html)
    assert not re.search(r"https?:|//|@import|url\(", html)
    assert {name for _, given in shown.tags for name in given}.isdisjoint(
        {"src", "href", "srcset", "data", "xlink:href"}
    )
    assert "prefers-color-scheme: dark" in html
    html.encode("ascii")


def test_samples_stand_side_by_side_in_the_order_of_the_data(tmp_path: Path) -> None:
    before = [sample(f"q{n}", n == 3, completion=f"before {n}") for n in range(30)]
    after = [
        sample(f"q{n}", n % 2 == 1, completion=f"after {n}", reason="wrong: got 8" * (n % 2 == 0)) for n in range(30)
    ]
    evaluate(tmp_path, "before SFT", before)
    evaluate(tmp_path, "after SFT", after[::-1])
    shown = page(tmp_path)
    assert shown.all("p.question") == [f"q{n} (answer: 7)" for n in range(24)]
    assert shown.all("pre") == [text for n in range(24) for text in (f"before {n}", f"after {n}")]
    assert shown.all("header")[:4] == [
        "before SFT: wrong",
        "after SFT: wrong (got 8)",
        "before SFT: wrong",
        "after SFT: right",
    ]
    (note,) = shown.all("p")[:1]
    assert note.startswith("The first 8 of 30 questions, in the order of the data, not selected.")
    assert "14 went from wrong to right, 0 from right to wrong, 1 stayed right, 15 wrong." in note
    assert shown.all("summary") == ["16 more questions"]


def test_verdicts_are_counted_by_what_the_reward_said(tmp_path: Path) -> None:
    reasons = ["correct", "wrong: got 3", "wrong: got 4", "unparsable: no box"]
    evaluate(tmp_path, "before SFT", [sample(f"q{n}", n == 0, reason=reason) for n, reason in enumerate(reasons)])
    evaluate(tmp_path, "after SFT", [sample(f"q{n}", True) for n in range(4)])
    rows = page(tmp_path).all("tr")
    assert rows == ["verdictbefore SFTafter SFT", "correct25.0 %100.0 %", "wrong50.0 %0.0 %", "unparsable25.0 %0.0 %"]


def test_control_characters_of_a_sample_are_written_out(tmp_path: Path) -> None:
    evaluate(tmp_path, "before SFT", [sample("q", False, completion="a\x00b\x1b[2Jc\td")])
    write_report(tmp_path, "run")
    html = (tmp_path / "report.html").read_text()
    assert "a\\x00b\\x1b[2Jc\td" in html and not {"\x00", "\x1b"} & set(html)


def test_what_went_wrong_is_said(tmp_path: Path) -> None:
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        metrics.write("sft", 1, {"loss": math.nan, "grad_norm": math.inf, "tok_s": 1.0})
        metrics.write("grpo", 1, grpo(1))
        metrics.write("grpo", 2, {"reward": 1.0, "accuracy": 1.0, "groups": 8, "flat_groups": 8, "masked": 3})
        metrics.write("all-tasks", 1, grpo(1, flat_groups=8))
    evaluate(tmp_path, "before SFT", [sample("q", False)], truncated=0.25)
    evaluate(tmp_path, "after SFT", [sample("q", False)], truncated=0.05)
    console = Console(tmp_path, stream=io.StringIO())
    for text in ("a reward timed out", "a reward timed out", "weights changed"):
        console.warn(text)
    assert page(tmp_path).all("li") == [
        "a reward timed out (2 times)",
        "weights changed",
        "2 values are not finite and are left out of the plots; the first is SFT step 1: loss.",
        "3 rollouts had no verdict and were left out of their groups.",
        "1 of 2 GRPO steps changed nothing: in every group all rewards were equal.",
        "1 of 1 all-tasks steps changed nothing: in every group all rewards were equal.",
        "before SFT: 25% of the completions hit the token limit; accuracy counts them as they stand.",
    ]


def test_a_clean_run_has_no_warnings(tmp_path: Path) -> None:
    run(tmp_path)
    shown = page(tmp_path)
    assert shown.all("li") == []
    assert "Warnings" not in shown.all("h2")


def test_numbers_that_are_not_finite_are_not_drawn(tmp_path: Path) -> None:
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        for step in range(1, 5):
            broken = math.nan if step == 2 else math.inf
            metrics.write("grpo", step, dict.fromkeys(grpo(1), broken) if step % 2 == 0 else grpo(step))
    html = write_report(tmp_path, "a run").read_text()
    assert not re.search(r"[\s\"MVHL](nan|inf)\b", html)


def test_a_folder_with_nothing_in_it_has_a_report_too(tmp_path: Path) -> None:
    shown = page(tmp_path)
    assert "Nothing is measured yet." in shown.all("p")
    assert shown.all("svg") == []


def test_a_run_that_is_still_going_can_be_looked_at(tmp_path: Path) -> None:
    """A line that is being written, and a stage that has only begun."""
    run(tmp_path, sft=1, steps=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "grpo", "step": 1, "rew')
    shown = page(tmp_path)
    assert shown.all("h2") == ["SFT"]
    assert "nan" not in "".join(shown.all("svg"))


def test_the_configuration_is_shown_as_it_is(tmp_path: Path) -> None:
    config = "model:\n  hidden_size: 64\nlr: 1.0e-05\n"
    (tmp_path / "config.yaml").write_text(config)
    assert page(tmp_path).all("pre") == [config]


@pytest.mark.slow
def test_a_large_run_makes_a_small_page_quickly(tmp_path: Path) -> None:
    """10,000 steps and 600 long completions, every character of which needs an escape."""
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        for step in range(1, 2001):
            metrics.write(
                "sft", step, {"loss": 2 / step, "lr": 1e-4, "grad_norm": 1 + step % 7, "tok_s": 5000.0 + step % 11}
            )
        for step in range(1, 8001):
            metrics.write(
                "grpo", step, grpo(step, reward=(step * 7919 % 1000) / 1000, accuracy=(step * 104729 % 997) / 997)
            )
    for name in ("before SFT", "after SFT", "after GRPO"):
        evaluate(tmp_path, name, [sample("&" * 3000 + str(n), n % 2 == 0, completion="<" * 2500) for n in range(200)])
    start = time.process_time()
    path = write_report(tmp_path, "a run")
    assert time.process_time() - start < 3
    assert path.stat().st_size < 1_000_000
    shown = Page(path.read_text())
    assert shown.all("pre")[0] == "<" * 1500 + " ... (1,000 more characters)"


def test_an_old_report_stays_whole_while_a_new_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    before = write_report(tmp_path, "first").read_text()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkit.watch.metrics.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, "second")
    assert (tmp_path / "report.html").read_text() == before
