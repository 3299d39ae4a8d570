"""A job's folder: what it says of its progress, what it refuses, how it ends."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from rewards import RewardFunction, Sample, load
from rlkit.config import DistillRun
from rlkit.config.compose import load_config
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.generate import generate
from rlkit.distill.journal import Counts
from rlkit.distill.questions import asked_of_a_server
from rlkit.distill.teacher import TeacherError
from rlkit.errors import UserError
from rlkit.run import job as module
from rlkit.run.inputs import digest, write_inputs
from rlkit.run.job import Job, Prepared, progress_line
from tests.distill.parts import SERVER, FakeReward, FakeTeacher
from tests.distill.test_generate import run

ROWS = [{"question": f"Compute {i} + {i} in your {word} head", "answer": str(2 * i)} for i, word in enumerate("abcdef")]


def config(folder: Path, *words: str) -> DistillRun:
    file = folder / "q.jsonl"
    if not file.exists():
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given = (*SERVER, "samples=3", f"data={file}", f"output_dir={folder / 'job'}", *words)
    return load_config("distill_generate", DistillRun, given)


def opened(cfg: DistillRun) -> Job:
    """A job of the fake teacher, without a look at a server."""
    asked_as = asked_of_a_server(cfg)
    judge = load(cfg.reward.fn, **cfg.reward.kwargs)
    return Job(cfg, Prepared(asked_as=asked_as, tests=ExamQuestions([], 0.5), checkpoint=None, judge=judge))


def counts(answers: int, judged: int = 0, correct: int = 0) -> Counts:
    return Counts(asked=1000, answers=answers, tokens=100 * answers, judged=judged, correct=correct)


@pytest.mark.parametrize(
    ("begun", "now", "seconds", "line"),
    [
        (counts(0), counts(1000, 900, 450), 100.0,
         "answers: 1,000/4,000 (25%), 01:40 so far, about 05:00 left, 1,000 tokens/s, 50.0% of 900 judged are right"),
        (counts(2000), counts(3000), 50.0, "answers: 3,000/4,000 (75%), 00:50 so far, about 00:50 left, 2,000 tokens/s"),  # noqa: E501
        (counts(0), counts(4000), 7200.0, "answers: 4,000/4,000 (100%), 2:00:00 so far, 56 tokens/s"),
        (counts(0), counts(0), 3.0, "answers: 0/4,000 (0%), 00:03 so far, 0 tokens/s"),
    ],
)  # fmt: skip
def test_progress_says_how_far_how_fast_how_good_and_how_long(
    begun: Counts, now: Counts, seconds: float, line: str
) -> None:
    assert progress_line(begun, now, 4000, seconds) == line


def test_a_line_comes_every_so_often_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPORT_S", 0.0)
    with opened(config(tmp_path)) as job:
        teacher, reward = FakeTeacher(False), FakeReward()
        job.follow(generate(job.journal, teacher.start, reward, job.prepared.asked_as, job.cfg))
        job.write()
        job.write()
    printed = capsys.readouterr().out
    assert printed.startswith("6 questions of 6 rows; 0 of 18 answers are there\n")
    assert printed.count("answers: ") > 3 and "answers: 18/18 (100%)" in printed
    assert "           6  answers in the dataset\n" in printed
    assert printed.count("this job is complete; for a new one, set another output_dir") == 1


def test_a_silent_reward_is_told_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(config(tmp_path)) as job:
        run(job.journal, FakeTeacher(False), FakeReward(silent=frozenset(range(6))), job.cfg)
        job.write()
        first = (job.folder / "dataset" / "README.md").read_text()
    printed = capsys.readouterr().out
    told = "have no verdict (infra) and are not in the dataset: the sandbox or the judge's server failed"
    assert f"warning: 6 answers {told}" in printed
    with opened(config(tmp_path)) as job:
        run(job.journal, FakeTeacher(False), FakeReward(), job.cfg)
        job.write()
        assert (job.folder / "dataset" / "README.md").read_text() != first, "it is written anew"


def test_two_jobs_do_not_share_a_folder(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    with opened(cfg), pytest.raises(UserError, match="is in use by another run"):
        opened(cfg)
    with opened(cfg):
        pass


@pytest.mark.parametrize("word", ["seed=1", "samples=2", "teacher.model=other", "cleaning.near=0.9", "reward=math"])
def test_a_changed_setting_is_refused_by_name(word: str, tmp_path: Path) -> None:
    with opened(config(tmp_path)):
        pass
    with pytest.raises(UserError, match=rf"holds a run with other settings: {word.split('=')[0]}"):
        opened(config(tmp_path, word))
    with opened(config(tmp_path, "selection.order=readable", "teacher.retries=1")):
        pass


def test_a_changed_file_is_refused_even_without_its_record(tmp_path: Path) -> None:
    with opened(config(tmp_path)):
        pass
    first = (tmp_path / "q.jsonl").read_text()
    (tmp_path / "q.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UserError, match=r"another q.jsonl.*put it back, or use another output_dir$"):
        opened(config(tmp_path))
    (tmp_path / "job" / "inputs.json").unlink()
    with pytest.raises(UserError, match="belongs to a job with other settings or other files"):
        opened(config(tmp_path))
    (tmp_path / "q.jsonl").write_text(first)
    with opened(config(tmp_path)):
        pass
    with pytest.raises(UserError, match="resume=never"):
        opened(config(tmp_path, "resume=never"))


def test_what_another_stage_loaded_is_no_file_of_the_job(tmp_path: Path) -> None:
    """A pipeline whose first stage is done does not load its reward again; both lie in one folder."""
    (tmp_path / "part_of_a.py").write_text("value = 1.0\n")
    (tmp_path / "part_of_b.py").write_text("value = 1.0\n")
    for name in "ab":
        code = f"import part_of_{name}\ndef f(completion, answer, **_): return part_of_{name}.value\n"
        (tmp_path / f"{name}.py").write_text(code)
    cfg = config(tmp_path, f"reward={tmp_path}/b.py:f")
    load(f"{tmp_path}/a.py:f")
    with opened(cfg) as job:
        first = job.inputs
    assert sorted(first) == ["data.source q.jsonl", "reward.fn b.py", "reward.fn part_of_b.py"]
    for name in [name for name in sys.modules if name == "part_of_a" or name.endswith("_a_py")]:
        del sys.modules[name]
    with opened(cfg) as job:
        assert job.inputs == first
    (tmp_path / "part_of_a.py").write_text("value = 2.0\n")
    with opened(cfg):
        pass
    (tmp_path / "part_of_b.py").write_text("value = 2.0\n")
    with pytest.raises(UserError, match=r"another part_of_b.py"):
        opened(cfg)


def test_a_file_that_only_an_earlier_record_names_holds_no_job_up(tmp_path: Path) -> None:
    """The record of the first start counts, not what this start would write."""
    record, other = tmp_path / "job" / "inputs.json", tmp_path / "other.py"
    (tmp_path / "b.py").write_text("def f(completion, answer, **_): return 1.0\n")
    other.write_text("")
    cfg = config(tmp_path, f"reward={tmp_path}/b.py:f")
    cfg.output_dir.mkdir()
    write_inputs(cfg)
    more = json.loads(record.read_text()) | {"reward.fn other.py": digest(other)}
    record.write_text(json.dumps(more))
    for _ in range(2):
        with opened(cfg) as job:
            assert job.inputs == more


@pytest.mark.parametrize("number", ["number", "[number, 1.0]"])
def test_the_cache_of_a_judge_inside_a_composite_may_grow_and_move(number: str, tmp_path: Path) -> None:
    def made(cache: str) -> DistillRun:
        judge = (
            f"kwargs: {{endpoint: 'http://h/v1', model: m, form: score, rubric: 'rate {{reply}}', cache: '{cache}'}}"
        )
        words = ["reward=composite", "reward.timeout=200"]
        return config(tmp_path, *words, f"reward.kwargs={{rewards: [{number}, {{fn: judge, weight: 1, {judge}}}]}}")

    class NoCheck(RewardFunction):
        def check_samples(self, samples: Sequence[Sample]) -> None:
            """No server is there."""

    def finished(cfg: DistillRun) -> tuple[str, dict[str, str]]:
        asked_as, judge = asked_of_a_server(cfg), load(cfg.reward.fn, **cfg.reward.kwargs)
        judge.__class__ = NoCheck
        prepared = Prepared(asked_as=asked_as, tests=ExamQuestions([], 0.5), checkpoint=None, judge=judge)
        with Job(cfg, prepared) as job:
            run(job.journal, FakeTeacher(False), FakeReward(), job.cfg)
            job.write()
            return (job.folder / "dataset" / "README.md").read_text(), job.inputs

    first = finished(made(f"{tmp_path}/judge.sqlite"))
    (tmp_path / "judge.sqlite").write_text("some answers")
    assert finished(made(f"{tmp_path}/judge.sqlite")) == first
    shutil.rmtree(tmp_path / "job" / "dataset")
    (tmp_path / "known.sqlite").write_text("more answers")
    assert finished(made(f"{tmp_path}/known.sqlite")) == first
    assert "sqlite" not in first[0]


def test_a_teacher_that_gives_up_ends_the_program_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def progress(job: Job) -> Generator[Counts]:
        yield from run(job.journal, FakeTeacher(False, dies_after=7), FakeReward(), job.cfg)

    with pytest.raises(SystemExit) as left, opened(config(tmp_path)) as job:
        job.follow(progress(job))
    assert left.value.code == 1 and capsys.readouterr().err == "error: the teacher is gone\n"
    with pytest.raises(SystemExit) as left, opened(config(tmp_path)):
        raise KeyboardInterrupt
    assert left.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    with opened(config(tmp_path)) as job:
        assert job.journal.counts().answers == 7


def test_an_error_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(config(tmp_path)):
        raise ZeroDivisionError
    with pytest.raises(TeacherError), pytest.raises(SystemExit):
        raise TeacherError  # only inside a job


def test_preferences_are_there_as_the_settings_say_and_are_counted(tmp_path: Path) -> None:
    def written(*words: str) -> str:
        with opened(config(tmp_path, *words)) as job:
            run(job.journal, FakeTeacher(False), FakeReward(), job.cfg)
            job.write()
        return (tmp_path / "job" / "dataset" / "README.md").read_text()

    folder = tmp_path / "job" / "preferences"
    first = written("selection.pair_margin=0.5")
    assert "| preferences | 6 |" in first and len(list(folder.iterdir())) == 1
    shutil.rmtree(folder)
    assert written("selection.pair_margin=0.5") == first
    assert len(list(folder.iterdir())) == 1, "lost alone, written anew"
    assert "preferences |" not in written("selection.pair_margin=0") and not folder.exists()
    assert "| questions without a preference: rewards too close | 6 |" in written("selection.pair_margin=1.5")
