"""The story with small parts: whatever fails, every answer is there once, and the files are the same."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from rlkit.config import DistillRun
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.generate import generate
from rlkit.distill.journal import Counts, Journal
from rlkit.distill.teacher import TeacherError
from rlkit.distill.writing import write_dataset
from tests.distill.parts import FakeReward, FakeTeacher, config, journal_of, prompts_of


def run(journal: Journal, teacher: FakeTeacher, reward: FakeReward, cfg: DistillRun) -> list[Counts]:
    return list(generate(journal, teacher.start, reward, prompts_of(cfg), cfg))


def files(journal: Journal, cfg: DistillRun) -> dict[str, bytes]:
    """The files of the dataset."""
    names = ("seed", "model", "reward", "selection", "data", "engine", "samples", "sampling", "cleaning")
    settings = {name: {} for name in names} | {"teacher": {"url": "x"}}
    folder = cfg.output_dir / "dataset"
    exam = ExamQuestions([], 0.7)
    write_dataset(journal, exam, prompts_of(cfg), cfg, folder, settings=settings, inputs={})
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("whole_calls", [True, False])
def test_everything_is_answered_and_judged_once(whole_calls: bool, tmp_path: Path) -> None:
    cfg, teacher, reward = config(tmp_path), FakeTeacher(whole_calls), FakeReward()
    with closing(journal_of(cfg)) as journal:
        told = run(journal, teacher, reward, cfg)
        assert teacher.given == Counter((row, sample) for row in range(10) for sample in range(3))
        assert set(reward.judged.values()) == {1} and len(reward.judged) == 10
        assert told[-1] == journal.counts()
        assert (told[-1].answers, told[-1].judged, told[-1].correct) == (30, 30, 20)
        assert [counts.answers for counts in told] == sorted(counts.answers for counts in told)
        run(journal, teacher, reward, cfg)
    assert teacher.starts == 1, "a job that has all answers starts no teacher"
    assert set(reward.judged.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("whole_calls", [True, False])
@pytest.mark.parametrize("dies_after", [0, 1, 11, 12, 13, 29])
def test_a_teacher_that_dies_loses_nothing_and_doubles_nothing(
    whole_calls: bool, dies_after: int, tmp_path: Path
) -> None:
    whole, broken = config(tmp_path / "whole"), config(tmp_path / "broken")
    with closing(journal_of(whole)) as journal:
        run(journal, FakeTeacher(whole_calls), FakeReward(), whole)
        expected = files(journal, whole)
    first, second = FakeTeacher(whole_calls, dies_after=dies_after), FakeTeacher(whole_calls)
    with closing(journal_of(broken)) as journal, pytest.raises(TeacherError):
        run(journal, first, FakeReward(), broken)
    with closing(journal_of(broken)) as journal:
        kept = journal.counts().answers
        # Of a call of 4 questions all 12 answers are kept or none; from a server each.
        assert kept == (dies_after - dies_after % 12 if whole_calls else dies_after)
        run(journal, second, FakeReward(), broken)
        assert sum(second.given.values()) == 30 - kept, "nothing that is there is asked again"
        assert files(journal, broken) == expected


def test_a_server_that_never_says_the_same_twice_is_asked_once(tmp_path: Path) -> None:
    numbers = count()
    cfg = config(tmp_path)

    def noise() -> str:
        return f"word{next(numbers)}"

    with closing(journal_of(cfg)) as journal, pytest.raises(TeacherError):
        run(journal, FakeTeacher(False, dies_after=17, noise=noise), FakeReward(), cfg)
    with closing(journal_of(cfg)) as journal:
        before = {(row, s.sample): journal.text(row, s.sample) for row, found in journal.answers() for s in found}
        assert len(before) == 17
        run(journal, FakeTeacher(False, noise=noise), FakeReward(), cfg)
        assert all(journal.text(*key) == text for key, text in before.items())
        written = files(journal, cfg)
    with closing(journal_of(cfg)) as journal:
        assert files(journal, cfg) == written


def test_no_verdict_is_asked_again_at_the_next_start(tmp_path: Path) -> None:
    cfg, reward = config(tmp_path), FakeReward(silent=frozenset([2, 5]))
    with closing(journal_of(cfg)) as journal:
        run(journal, FakeTeacher(True), reward, cfg)
        assert set(reward.judged.values()) == {1}, "not twice in one start"
        assert journal.counts().judged == 28
        assert journal.no_verdicts() == {"infra": 2}
        silent = files(journal, cfg)
        assert b"no verdict: infra | 2" in silent["README.md"]
        teacher, again = FakeTeacher(True), FakeReward()
        run(journal, teacher, again, cfg)
        assert teacher.starts == 0 and again.judged == Counter({"q/train/2": 1, "q/train/5": 1})
        assert journal.counts().judged == 30 and journal.no_verdicts() == {}
        mended = files(journal, cfg)
    clean = config(tmp_path / "clean")
    with closing(journal_of(clean)) as journal:
        run(journal, FakeTeacher(True), FakeReward(), clean)
        assert files(journal, clean) == mended != silent


def test_answers_that_were_never_judged_are_judged_first(tmp_path: Path) -> None:
    """As after a kill between the answer and its verdict."""
    cfg, reward = config(tmp_path), FakeReward()
    with closing(journal_of(cfg)) as journal:
        with pytest.raises(TeacherError):
            run(journal, FakeTeacher(False, dies_after=29), FakeReward(), cfg)
        journal._sql.execute("UPDATE answers SET correct = NULL, value = NULL, reason = NULL, parts = NULL")
    with closing(journal_of(cfg)) as journal:
        run(journal, FakeTeacher(False), reward, cfg)
        assert set(reward.judged.values()) == {1} and len(reward.judged) == 10
        assert journal.counts().judged == 30
