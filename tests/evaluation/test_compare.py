"""Comparisons of evaluations: a case by hand, what is refused, and what the page says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkit.cli.main import main
from rlkit.evaluation.compare import contest
from tests.evaluation.scripted import Scripted, evaluate, model_folder, results, sums, tagged
from tests.watch.test_report import Page

Outcomes = Mapping[str, Sequence[bool | None]]


def written(folder: Path, outcomes: Outcomes, suite: str = "own", **changes: Any) -> Path:
    """A results.json with what a comparison reads."""
    folder.mkdir(exist_ok=True)
    one = {"outcomes": outcomes, "settings": {"problems": "p"}, "reward": "math", "reward_mark": "a"} | changes
    (folder / "results.json").write_text(json.dumps({"suites": {suite: one}}))
    return folder


def single(pattern: str) -> Outcomes:
    """One sample for each problem: "1" is right, "0" wrong, "?" without a verdict."""
    return {f"own/{place}": [{"1": True, "0": False, "?": None}[mark]] for place, mark in enumerate(pattern)}


def compared(tmp_path: Path, *folders: Path) -> dict[str, Any]:
    main(["eval", "compare", *map(str, folders), f"output_dir={tmp_path / 'compared'}"])
    return results(tmp_path / "compared")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(["eval", "compare", *words])
    assert leaving.value.code == 2
    return capsys.readouterr().err


def test_one_sample_each_is_mcnemars_test_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """7 problems differ, 6 of them won: p = 2 (C(7,0) + C(7,1)) / 2^7 = 0.125."""
    a = written(tmp_path / "a", single("0000001" + "11111000"))
    b = written(tmp_path / "b", single("1111110" + "11111000"))
    [one] = compared(tmp_path, a, b)["contests"]
    assert (one["better"], one["worse"], one["problems"], one["test"]) == (6, 1, 15, "McNemar, exact")
    assert (one["p"], one["p_holm"]) == pytest.approx((0.125, 0.125))
    assert (one["first"]["value"], one["this"]["value"]) == pytest.approx((6 / 15, 11 / 15))
    assert one["difference"]["value"] == pytest.approx(1 / 3)
    assert "p = 0.125 after Holm's correction: not more than chance may do" in capsys.readouterr().out


def test_several_samples_are_paired_by_problem_and_no_verdict_is_not_right(tmp_path: Path) -> None:
    """Differences in sixths of a problem: +2, +2, -1, 0; of 8 signs those of +++, ++-, and their mirrors reach 3."""
    a = written(tmp_path / "a", {"x": [True, False, False], "y": [False] * 3, "z": [True] * 3, "w": [None] * 3})
    b = written(tmp_path / "b", {"x": [True, True, False, False, True, True], "y": [False, True] * 2 + [False, None],
                                 "z": [True] * 5 + [False], "w": [False] * 6, "new": [True] * 6})  # fmt: skip
    [one] = compared(tmp_path, a, b)["contests"]
    assert (one["problems"], one["samples"], one["test"]) == (4, [3, 6], "paired permutation, exact")
    assert (one["better"], one["worse"]) == (2, 1)
    assert one["p"] == pytest.approx(4 / 8)
    assert one["difference"]["value"] == pytest.approx((2 + 2 - 1) / 6 / 4)


def test_problems_that_owe_a_verdict_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 12 problems a machine failed at 9 in one evaluation, and one was not drawn in the other."""
    a = written(tmp_path / "a", single("1" * 11), incomplete=["own/11"])
    b = written(tmp_path / "b", single("10" + "?" * 9 + "1"), incomplete=[f"own/{i}" for i in range(2, 11)], unjudged=9)
    [one] = compared(tmp_path, a, b)["contests"]
    assert (one["problems"], one["left_out"], one["better"], one["worse"], one["p"]) == (2, 10, 0, 1, 1.0)
    assert one["difference"]["value"] == pytest.approx(-1 / 2)
    said = "own: 10 of 12 problems are left out between"
    printed = capsys.readouterr().out
    assert said in printed and "left out" in printed.splitlines()[0]
    page = Page((tmp_path / "compared" / "report.html").read_text())
    assert "10" in page.all("td") and any(said in text for text in page.all("p"))
    only_number = written(tmp_path / "number", single("10" + "?" * 10), unjudged=10)
    [one] = compared(tmp_path, only_number, written(tmp_path / "all", single("1" * 12)))["contests"]
    assert (one["problems"], one["left_out"]) == (2, 10), "which they are is not said, but they have no verdict"
    [one] = compared(tmp_path, written(tmp_path / "odd", single("1?")), written(tmp_path / "c", single("11")))[
        "contests"
    ]
    assert (one["problems"], one["left_out"], one["better"]) == (2, 0, 1), "the reward itself could not decide"


def test_evaluations_that_have_done_no_problem_both_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = written(tmp_path / "a", single("1?"), incomplete=["own/1"])
    b = written(tmp_path / "b", {"own/1": [True]}, incomplete=["own/0"])
    said = refused(capsys, str(a), str(b), f"output_dir={tmp_path / 'out'}")
    assert f"no problem of suite own that both have done: in {a} and {b} samples are missing" in said
    assert "give the same 'rlkit eval' command again: only these are drawn and judged" in said
    whole = written(tmp_path / "whole", single("11"))
    none = written(tmp_path / "none", single("??"), incomplete=["own/0", "own/1"])
    assert f"both have done: in {none} samples" in refused(capsys, str(whole), str(none))
    assert not (tmp_path / "out").exists()


def test_problems_are_paired_by_their_id_and_not_by_their_place() -> None:
    """Another order, and gaps on both sides: paired by place, every problem would differ."""
    right = {"own/0": True, "own/1": False, "own/2": True, "own/3": False, "own/5": True, "own/6": False}
    first = {"outcomes": {id: [right[id]] for id in ("own/0", "own/1", "own/2", "own/3", "own/5")}}
    this = {"outcomes": {id: [right[id]] for id in ("own/6", "own/5", "own/3", "own/2", "own/1")}}
    for one in (contest("own", "b", first, this), contest("own", "a", this, first)):
        assert (one.problems, one.left_out, one.better, one.worse, one.p) == (4, 0, 0, 0, 1.0)
        assert one.first.value == one.this.value == pytest.approx(1 / 2) and one.difference.value == 0
    this["outcomes"]["own/3"] = [True]
    won = contest("own", "b", first, this)
    assert (won.better, won.worse, won.difference.value) == (1, 0, pytest.approx(1 / 4))


def test_the_best_of_many_checkpoints_is_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best of three has won 6 of 6, p = 2 / 2^6 alone; after three looks it is three times that."""
    first = written(tmp_path / "first", single("000000" + "1" * 10))
    folders = [
        written(tmp_path / name, single(pattern + "1" * 10))
        for name, pattern in (("one", "100000"), ("two", "111111"), ("three", "110000"))
    ]
    found = compared(tmp_path, first, *folders)
    alone, corrected = ({Path(c["folder"]).name: c[key] for c in found["contests"]} for key in ("p", "p_holm"))
    assert alone == pytest.approx({"one": 1.0, "two": 1 / 32, "three": 0.5})
    assert corrected == pytest.approx({"one": 1.0, "two": 3 / 32, "three": 1.0})
    assert found["best"]["own"] == {"folder": str(folders[1]), "pass@1": 1.0, "p_holm": pytest.approx(3 / 32)}
    assert "not more than chance may do" in capsys.readouterr().out
    page = Page((tmp_path / "compared" / "report.html").read_text())
    assert page.all("h1") == ["rlkit eval compare"]
    assert {"0.031", "0.094", "McNemar, exact", str(folders[1])} <= set(page.all("td"))
    assert len(page.all("svg")) == 1 and len(page.all("circle")) == 0
    assert sum(tag == "circle" for tag, _ in page.tags) == 4
    nothing = compared(tmp_path, folders[1], first)
    assert nothing["best"]["own"] == {"folder": str(folders[1]), "pass@1": 1.0, "p_holm": None}


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path / "a", single("01")), written(tmp_path / "b", single("11"))
    assert "needs two folders" in refused(capsys, str(a))
    assert "is given twice" in refused(capsys, str(a), str(b), str(a))
    assert "holds no results.json" in refused(capsys, str(a), str(tmp_path))
    assert "there is output_dir=DIR" in refused(capsys, str(a), str(b), "seed=1")
    assert "set another output_dir" in refused(capsys, str(a), str(b), f"output_dir={a}")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "results.json").write_text('{"contests": []}')
    assert "is no result of an evaluation" in refused(capsys, str(a), str(tmp_path / "odd"))
    for changes, words in (
        ({"settings": {"problems": "q"}}, "other problems under the name own"),
        ({"reward": "number"}, "judge both by one, with --rescore"),
        ({"reward_mark": "b"}, "but with other settings, another file or another version of rlkit"),
        ({"suite": "other"}, "no suite is in all"),
        ({"outcomes": {"own/7": [True]}}, "no problem of suite own in common"),
    ):
        other = written(tmp_path / "other", **{"outcomes": single("11"), **changes})
        assert words in refused(capsys, str(a), str(other))
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_whole_evaluations_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From two models to a page: one solves all problems, the other every second one."""
    model, own = model_folder(tmp_path / "model"), sums(tmp_path / "own.jsonl", 8)
    words = [f"suite={own}", "samples=2"]
    Scripted(lambda p, i: tagged(p.meta["answer"] if int(p.meta["answer"]) % 4 else 99)).started(monkeypatch)
    evaluate(model, *words, f"output_dir={tmp_path / 'a'}")
    Scripted(lambda p, i: tagged(p.meta["answer"])).started(monkeypatch)
    evaluate(model, *words, f"output_dir={tmp_path / 'b'}")
    [one] = compared(tmp_path, tmp_path / "a", tmp_path / "b")["contests"]
    assert (one["better"], one["worse"], one["p"]) == (4, 0, pytest.approx(2 / 16))
