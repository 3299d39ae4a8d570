"""The numbers of a reward model and the part of the report about it, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest

from rlkit.watch.preferences import (
    Judgements,
    correlation,
    hacked,
    preference_section,
    read_judgements,
    write_judgements,
)

PAIRS = Judgements(
    name="after training",
    step=40,
    scores=(2.0, 0.0, 1.0, 3.0, 0.5, 0.5, 4.0, -1.0),
    lengths=(10, 12, 9, 9, 8, 6, 20, 11),
    labels=(),
)


def test_accuracy_calibration_and_length_by_hand() -> None:
    """Margins 2, -2, 0, 5: two of four are right, and a tie is not."""
    numbers = PAIRS.numbers()
    assert PAIRS.margins == [2.0, -2.0, 0.0, 5.0] and PAIRS.right == [1.0, 0.0, 0.0, 1.0]
    assert numbers["accuracy"] == 0.5 and numbers["pairs"] == 4
    assert numbers["accuracy/chosen_shorter"] == 1.0 and numbers["accuracy/chosen_longer"] == 0.5
    sure, surer = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-5))
    assert numbers["ece"] == pytest.approx(2 / 4 * abs(0.5 - sure) + 1 / 4 * 0.5 + 1 / 4 * abs(1 - surer))
    assert numbers["length_correlation"] == pytest.approx(numpy.corrcoef(PAIRS.scores, PAIRS.lengths)[0, 1])
    assert "accuracy 50.0% of 4, 100.0% where the chosen is shorter" in PAIRS.summary()


def test_labels_are_judged_by_the_sign_of_the_score() -> None:
    judged = Judgements(name="after", step=1, scores=(2.0, -1.0, 900.0), lengths=(3, 4, 5), labels=(1.0, 1.0, 0.0))
    assert judged.right == [1.0, 0.0, 0.0] and judged.by_length() == {}
    assert not any(key.startswith("accuracy/") for key in judged.numbers())


def test_scores_that_never_change_have_no_correlation() -> None:
    assert correlation([1.0, 1.0], [3.0, 4.0]) == 0.0


def test_judgements_come_back_in_the_order_of_the_run(tmp_path: Path) -> None:
    before = Judgements(name="before training", step=0, scores=(1.0, 0.0), lengths=(3, 3), labels=())
    for judged in (PAIRS, before):
        write_judgements(tmp_path, judged)
    assert read_judgements(tmp_path) == [before, PAIRS]
    page = preference_section([before, PAIRS])
    assert "<th>before training</th><th>after training</th>" in page
    assert "50.0% of 4 [15.0, 85.0]" in page and "1 at 73%" not in page and "2 at 88%" in page
    assert "<td>accuracy where the chosen is longer</td><td>-</td><td>50.0% of 2" in page
    assert preference_section([]) == ""


def curve(model: list[float], truth: list[float]) -> list[dict]:
    return [{"step": i, "part/truth": t, "part/model": m} for i, (m, t) in enumerate(zip(model, truth, strict=True))]


def test_curves_that_part_are_told_and_others_are_not() -> None:
    up, down = [0.1 * i + 0.01 * (i % 2) for i in range(16)], [-0.2 * i + 0.01 * (i % 3) for i in range(16)]
    noise = [0.3 * (-1) ** i for i in range(16)]
    assert "rose from 0.155 to 1.35 while truth fell from -0.293 to -2.69" in hacked(curve(up, down))
    for model, truth in ((up, up), (down, down), (down, up), (up, noise), (noise, down), (up[:6], down[:6])):
        assert hacked(curve(model, truth)) == ""
    assert hacked([{"step": 1, "part/number": 1.0}] * 16) == "" == hacked([{"step": 1, "part/model": 1.0}] * 16)


GRADED = Judgements(name="after", step=1, scores=(2.0, -1.0, 900.0), lengths=(3, 4, 5), labels=(1.0, 1.0, 0.0))


def test_graded_samples_by_hand() -> None:
    """One of three is right; each stands alone in its range of confidence: sigmoid of 2, 1 and, bounded, 900."""
    numbers = GRADED.numbers()
    sure = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1)), 1.0]
    assert numbers["ece"] == pytest.approx((abs(1 - sure[0]) + sure[1] + sure[2]) / 3)
    assert sorted(each.confidence for each in GRADED.curve()) == pytest.approx(sorted(sure))
    assert numbers["accuracy"] == pytest.approx(1 / 3) and set(numbers) == {
        *("accuracy", "ece", "pairs", "length_correlation"),
    }
    assert GRADED.summary().startswith("accuracy 33.3% of 3, expected calibration error 0.617, correlation with length")


def test_a_label_of_one_half_is_no_good_sample() -> None:
    judged = Judgements(name="x", step=0, scores=(1.0, -1.0, 0.0), lengths=(1, 1, 1), labels=(0.5, 0.5, 0.0))
    assert judged.right == [0.0, 1.0, 1.0]


def test_pairs_of_equal_length_are_in_neither_half() -> None:
    judged = Judgements(name="x", step=0, scores=(1.0, 0.0, 0.0, 1.0), lengths=(5, 5, 5, 4), labels=())
    assert judged.by_length() == {"chosen_shorter": [], "chosen_longer": [0.0]}
    assert "accuracy/chosen_shorter" not in judged.numbers() and judged.numbers()["accuracy/chosen_longer"] == 0.0
    assert (
        "where the chosen is shorter" not in judged.summary() and "0.0% where the chosen is longer" in judged.summary()
    )


def test_half_a_pair_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError):
        _ = Judgements(name="x", step=0, scores=(1.0, 0.0, 2.0), lengths=(1, 1, 1), labels=()).margins


@pytest.mark.parametrize(
    ("xs", "ys", "expected"),
    [([1, 2, 3], [2, 4, 6], 1.0), ([1, 2, 3], [3, 2, 1], -1.0), ([0, 1, 0, 1], [0, 0, 1, 1], 0.0), ([5], [5], 0.0)],
)
def test_correlation_by_hand(xs: list[float], ys: list[float], expected: float) -> None:
    assert correlation(xs, ys) == pytest.approx(expected)


def test_judgements_are_files_by_step_and_name(tmp_path: Path) -> None:
    write_judgements(tmp_path, GRADED)
    write_judgements(tmp_path, Judgements(name="Step 7: <all>!", step=7, scores=(1.0,), lengths=(1,), labels=(1.0,)))
    files = sorted(path.name for path in (tmp_path / "preferences").iterdir())
    assert files == ["000001-after.json", "000007-step-7-all.json"]
    assert read_judgements(tmp_path)[0] == GRADED and read_judgements(tmp_path / "absent") == []


def test_a_section_about_graded_samples_has_no_rows_about_pairs() -> None:
    section = preference_section([GRADED])
    assert "<td>accuracy</td><td>33.3% of 3 [6.1, 79.2]</td>" in section and "<td>judged</td><td>3</td>" in section
    assert "chosen is" not in section and "ECE 0.617" in section


def test_names_of_judgements_are_text() -> None:
    odd = Judgements(name="<i>after</i>", step=0, scores=(1.0, 0.0), lengths=(1, 2), labels=())
    assert "<i>" not in preference_section([odd]) and "&lt;i&gt;after&lt;/i&gt;" in preference_section([odd])
