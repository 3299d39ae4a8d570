"""reward=judge against a scripted server: orders, votes, ties, garbage, the cache, settings that cannot work."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import RewardError, Sample
from rewards.judge import endpoint as module
from tests.rewards.judge.scripted import Reply, Scripted, fails, says, serving

PAIRS = "{question}\nA: {reply_a}\nB: {reply_b}"
ONE = "{question}\nAnswer: {reply}"
GOOD = {"fair": 3, "good": 5, "bad": 1, "best": 9, "7": 4}
"""How good an honest judge finds a reply."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)


def group(*replies: str, question: str = "Which?", answer: str = "7") -> list[Sample]:
    meta = {"question": question, "answer": answer}
    return [Sample(f"<|user|>{question}", f"<think>{i}</think>{reply}", meta=meta) for i, reply in enumerate(replies)]


def judge(server: Scripted, **settings: Any) -> rewards.RewardFunction:
    rubric = PAIRS if settings.get("form", "pairs") == "pairs" else ONE
    return rewards.load("judge", **{"endpoint": server.url, "model": "tiny", "rubric": rubric} | settings)


def sides(body: dict[str, Any]) -> tuple[str, str]:
    found = re.search(r"A: (.*)\nB: (.*)\n", body["messages"][0]["content"])
    assert found is not None
    return found[1], found[2]


def honest(body: dict[str, Any], before: int = 0) -> Reply:
    one, other = (GOOD[side] for side in sides(body))
    return says(f"I looked.\n[[{'A' if one > other else 'B' if other > one else 'C'}]]")


def values(script: Callable[..., Reply], samples: list[Sample], **settings: Any) -> list[float | None]:
    with serving(script) as server:
        return [reward.value for reward in judge(server, **settings)(samples)]


@pytest.mark.parametrize(
    ("opponents", "expected"),
    [
        ("circle", [0.0, 0.5, 1.0, 0.5]),  # bad-fair-best-good-bad
        ("all", [0.0, 1 / 3, 1.0, 2 / 3]),
        ("reference", [0.0, 0.0, 1.0, 1.0]),  # the column answer: 7, which is worth 4
    ],
)
def test_win_rates_with_an_honest_judge(opponents: str, expected: list[float]) -> None:
    found = values(honest, group("bad", "fair", "best", "good"), opponents=opponents)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("place", ["A", "B"])
def test_a_judge_that_prefers_a_place_gives_ties_only(place: str) -> None:
    with serving(lambda *_: says(f"[[{place}]]")) as server:
        found = judge(server)(group("fair", "good", "bad"))
    assert [reward.value for reward in found] == [0.5, 0.5, 0.5]
    assert all(reward.reason == "drew" and reward.logs["orders_disagree"] == 1 for reward in found)
    assert {sides(body) for body in server.asked} == {
        (one, other) for one in ("fair", "good", "bad") for other in ("fair", "good", "bad") if one != other
    }  # fmt: skip


def test_a_judge_that_wavers_between_an_order_and_a_tie_gives_a_tie() -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        return says("[[A]]") if sides(body) == ("good", "bad") else says("[[C]]")

    with serving(script) as server:
        one, other = judge(server)(group("good", "bad"))
    assert (one.value, other.value, one.logs["ties"], one.logs["orders_disagree"]) == (0.5, 0.5, 1.0, 0.0)


def test_votes_draw_answers_of_their_own() -> None:
    """good wins with the seeds 10 and 12, and loses with 11."""

    def script(body: dict[str, Any], before: int) -> Reply:
        good_is_first = sides(body)[0] == "good"
        return says("[[A]]" if good_is_first == (body["seed"] != 11) else "[[B]]")

    with serving(script) as server:
        one, other = judge(server, votes=3, temperature=0.7, seed=10)(group("good", "bad"))
    assert (one.value, other.value) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (one.reason, other.reason) == ("won", "lost")
    assert sorted(body["seed"] for body in server.asked) == [10, 10, 11, 11, 12, 12]
    assert {body["temperature"] for body in server.asked} == {0.7}


def test_equal_completions_are_one_question_and_a_tie() -> None:
    with serving(lambda *_: says("[[A]]")) as server:
        found = judge(server)(group("good", "good"))
    assert [reward.value for reward in found] == [0.5, 0.5] and len(server.asked) == 1


def test_only_completions_of_one_prompt_are_compared() -> None:
    """A batch of recorded rows may hold several groups, in any order, and completions that are alone."""
    first, second = group("good", "bad"), group("fair", "best", question="Who?")
    lone = group("best", question="Why?")
    with serving(honest) as server:
        found = judge(server)([first[0], second[0], lone[0], first[1], second[1]])
    assert [reward.value for reward in found] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert {frozenset(sides(body)) for body in server.asked} == {
        frozenset(("good", "bad")), frozenset(("fair", "best")), frozenset(("best", "7")),
    }  # fmt: skip


def test_a_lone_completion_without_a_reference_has_no_verdict() -> None:
    with serving(honest) as server:
        [found] = judge(server)(group("good", answer=" "))
    assert found.value is None and found.reason.startswith("no_verdict: nothing to compare with")
    assert server.asked == []


def test_scores_and_their_mean() -> None:
    with serving(lambda body, _: says(f"[[{body['seed'] * 2}]]")) as server:
        [found] = judge(server, form="score", scale=[0, 10], votes=4, temperature=1.0)(group("good"))
    assert (found.value, found.reason, found.logs["score"]) == (pytest.approx(0.3), "scored", pytest.approx(3.0))


def test_yes_and_no() -> None:
    script = lambda body, _: says("[[YES]]" if body["seed"] < 2 else "[[NO]]")  # noqa: E731
    for votes, value, reason in ((3, 2 / 3, "correct"), (4, 1 / 2, "wrong"), (5, 2 / 5, "wrong")):
        with serving(script) as server:
            [found] = judge(server, form="yes_no", votes=votes, temperature=1.0)(group("good"))
        assert (found.value, found.reason) == (pytest.approx(value), reason)


@pytest.mark.parametrize("text", ["", "both are fine", "[[D]]", "[[A]] or [[B]]", "<think>[[A]]", "\x00", "[[" * 9999])
def test_garbage_is_no_verdict_and_is_asked_for_again_with_another_seed(text: str) -> None:
    with serving(lambda *_: says(text)) as server:
        found = judge(server, votes=2, temperature=1.0)(group("good", "bad"))
    assert [reward.value for reward in found] == [None, None]
    assert all(reward.reason.startswith("no_verdict: the judge ends with ") for reward in found)
    assert sorted(body["seed"] for body in server.asked) == sorted([0, 1, 2, 3, 4, 5] * 2)


def test_only_answers_without_a_verdict_are_asked_for_again() -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        return says("hm") if sides(body) == ("bad", "good") and body["seed"] == 0 else honest(body)

    with serving(script) as server:
        found = judge(server)(group("good", "bad"))
    assert [reward.value for reward in found] == [1.0, 0.0]
    assert [(sides(body), body["seed"]) for body in server.asked[-1:]] == [(("bad", "good"), 1)]
    assert len(server.asked) == 3 and found[0].logs["asked_again"] == 0.5


def test_an_answer_that_is_cut_off_is_no_verdict() -> None:
    with serving(lambda *_: says("[[YES]]", finish="length")) as server:
        [found] = judge(server, form="yes_no")(group("good"))
    assert found.value is None and found.reason == "no_verdict: cut off, the judge ends with '[[YES]]'"


def test_one_completion_that_cannot_be_judged_costs_no_other_its_verdict() -> None:
    """The server refuses every question with a certain reply, as for one that is too long."""

    def script(body: dict[str, Any], before: int) -> Reply:
        return fails(400, "too long") if "best" in sides(body) else honest(body)

    with serving(script) as server:
        found = judge(server)(group("fair", "good", "bad", "best"))
    assert [reward.value for reward in found] == [0.0, 1.0, 0.0, None]
    assert found[3].reason == "infra: HTTP 400: too long"
    assert found[0].logs["ties"] == 0


def test_a_server_that_fails_now_and_then_changes_nothing() -> None:
    samples = group("fair", "good", "bad", "best")
    broken = [fails(429), fails(500), Reply(body=says("[[A]]").body, sent=30), Reply(body=b"{}")]
    faulty = lambda body, before: broken[len("".join(sides(body))) % 4] if before < 2 else honest(body)  # noqa: E731
    assert values(faulty, samples, opponents="all") == values(honest, samples, opponents="all")


def test_patience_ends_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: Reply(body=says("[[A]]").body, sent=9, stalls=True)) as server:
        loaded = judge(server, patience=0.2, timeout=60.0)
        found = loaded(group("good", "bad"))
    assert [reward.reason for reward in found] == ["infra: no answer before reward.kwargs.patience was over"] * 2
    assert loaded.longest_s == 0.2


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    cache = str(tmp_path / "new" / "judge.sqlite")
    with serving(honest) as server:
        first = judge(server, cache=cache)
        found = first(group("fair", "good", "bad"))
        first.close()
        num = len(server.asked)
        again = judge(server, cache=cache)  # another process, or the run that goes on
        assert [reward.value for reward in again(group("fair", "good", "bad"))] == [reward.value for reward in found]
        assert len(server.asked) == num == 6
        partly = again(group("fair", "good", "bad", "best"))
        assert len(server.asked) == num + 4  # best against its two neighbours
        assert partly[1].logs["from_cache"] == 1 and partly[3].logs["from_cache"] == 0
        for change in (
            {"temperature": 0.5},
            {"max_tokens": 7},
            {"extra": {"top_k": 1}},
            {"seed": 3},
            {"rubric": f"Look. {PAIRS}"},
        ):
            before = len(server.asked)
            judge(server, cache=cache, **change)(group("good", "bad"))
            assert len(server.asked) == before + 2, change


def test_what_was_not_readable_is_asked_again_after_all(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.sqlite")
    with serving(lambda body, _: honest(body) if sides(body) == ("good", "bad") else says("hm")) as server:
        [one, _] = judge(server, cache=cache, tries=1)(group("good", "bad"))
        assert one.value is None
        judge(server, cache=cache, tries=1)(group("good", "bad"))
    assert [sides(body) for body in server.asked].count(("good", "bad")) == 1
    assert len(server.asked) == 3


def test_the_key_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-9")
    with serving(honest) as server:
        judged = judge(server, cache=str(tmp_path / "c.sqlite"), key_env="JUDGE_KEY")
        judged(group("good", "bad"))
        assert "sk-secret-9" not in repr(judged)
        judged.close()
    assert set(server.keys) == {"Bearer sk-secret-9"}
    assert b"sk-secret-9" not in (tmp_path / "c.sqlite").read_bytes()


def test_a_cache_that_cannot_be_used_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and it is long enough to be looked at as one")
    with serving(honest) as server, pytest.raises(RewardError, match=r"cache=.*name another file"):
        judge(server, cache=str(tmp_path / "text"))(group("good", "bad"))
    assert server.asked == []


def test_a_cache_serves_several_processes(tmp_path: Path) -> None:
    """The first answer to a question stays, so that all of them say the same from then on."""
    path = str(tmp_path / "c.sqlite")
    with serving(honest) as server:
        judge(server, cache=path)(group("good", "bad"))
        other = judge(server, cache=path)
        other(group("best", "bad"))
        other.close()
    with sqlite3.connect(path) as table:
        assert table.execute("SELECT count(*) FROM answers").fetchone() == (4,)
    table.close()


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": ""}, "endpoint is missing"),
    ({"model": ""}, "model is missing"),
    ({"rubric": "{question}"}, "no {reply_a}"),
    ({"form": "score"}, "no {reply}"),
    ({"form": "best"}, "there are pairs, score, yes_no"),
    ({"opponents": "everyone"}, "there are circle, all, reference"),
    ({"votes": 3}, "votes=3 with temperature=0 would hear the same answer 3 times"),
    ({"votes": 0}, "votes=0 must be at least 1"),
    ({"tries": 0}, "tries=0"),
    ({"concurrency": 0}, "concurrency=0"),
    ({"max_tokens": 0}, "max_tokens=0"),
    ({"timeout": 0}, "timeout=0 must be above 0"),
    ({"patience": float("nan")}, "patience=nan"),
    ({"temperature": 3}, "from 0 to 2"),
    ({"temperature": "warm"}, "must be a number"),
    ({"form": "score", "rubric": ONE, "scale": 7}, "scale=7 must be"),
    ({"form": "score", "rubric": ONE, "scale": [5, 1]}, "scale=[5.0, 1.0]: give"),
    ({"form": "score", "rubric": ONE, "scale": ["a", 1]}, "judge: could not convert"),
    ({"extra": [1]}, "must be a table"),
    ({"extra": {"temperature": 1}}, "extra.temperature is set by rlkit"),
    ({"endpoint": "policy"}, "model says nothing with endpoint=policy"),
    ({"endpoint": "policy", "model": "", "key_env": "K"}, "key_env says nothing"),
    ({"key_env": "NO_SUCH_VARIABLE_HERE"}, "no such environment variable"),
    ({"key": "sk-1"}, "takes no setting 'key'"),
]


@pytest.mark.parametrize(("settings", "words"), SETTINGS)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RewardError) as raised:
        rewards.load("judge", **{"endpoint": "http://h/v1", "model": "tiny", "rubric": PAIRS} | settings)
    assert words in str(raised.value)


def test_rows_are_looked_at_before_a_run_and_the_server_too() -> None:
    with serving(honest) as server:
        judge(server).check_samples(group("", question="x"))
        with pytest.raises(RewardError, match=r"column 'answer', which sample 0 does not have or which is empty"):
            judge(server).check_samples(group("", answer=""))
        with pytest.raises(RewardError, match=r"\{gold\}, which is no column of sample 0"):
            judge(server, rubric=f"{PAIRS} {{gold}}").check_samples(group(""))
        judge(server, form="score").check_samples(group("", answer=""))
        with pytest.raises(RewardError, match="model='big' is not served"):
            judge(server, model="big").check_samples(group(""))
    with pytest.raises(RewardError, match="nobody answers there"):
        judge(server).check_samples(group(""))


def test_a_reference_is_needed_where_it_is_met() -> None:
    two = group("", "", answer="")
    with serving(honest) as server:
        judge(server).check_samples(two)
        for opponents, samples in (("circle", [*two, *group("", answer="", question="Who?")]), ("reference", two)):
            with pytest.raises(RewardError, match=rf"opponents={opponents} compares .*'answer', which sample [02] "):
                judge(server, opponents=opponents).check_samples(samples)


def test_without_a_run_there_is_no_policy() -> None:
    alone = rewards.load("judge", endpoint="policy", rubric=PAIRS)
    alone.check_samples(group("x"))
    with pytest.raises(RewardError, match="here is no run that trains one"):
        alone(group("good", "bad"))


def test_it_is_one_part_of_a_sum() -> None:
    with serving(honest) as server:
        part = {"fn": "judge", "kwargs": {"endpoint": server.url, "model": "tiny", "rubric": PAIRS}, "weight": 2.0}
        both = rewards.load("composite", rewards=[part, {"fn": "format", "weight": 0.5}])
        found = both(group("good", "bad"))
    assert [reward.value for reward in found] == [2.0, 0.0] and not both.independent
    assert found[0].parts == {"judge": 1.0, "format": 0.0} and both.longest_s == 120.0
