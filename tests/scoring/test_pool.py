"""Reward processes: what a group gets from good, wrong, hanging and dying rewards; none outlives its driver."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rewards import RewardError
from rlkit.cluster.reaper import Birth, below, marked
from rlkit.config import RewardConfig
from rlkit.rollout.judging import NoVerdictError, collect
from rlkit.scoring.pool import Scorer, build_reward
from rlkit.types import Group, Prompt, Rollout, Score

pytestmark = pytest.mark.slow

PLUGIN = """
import os, sys, time
from rewards import Reward

def length(completion, answer, unit=1.0):
    return Reward(len(completion) / unit, "wrong: " + completion if completion != answer else "correct")

def columns(prompt, completion, completion_ids, finish_reason, answer, trainer_state=None):
    return Reward(1.0, repr((prompt, completion, tuple(completion_ids), finish_reason, answer)))

def batch(prompts, completions, answer, trainer_state, **columns):
    return [len(set(completions)) + trainer_state.global_step * (a == "a") for a in answer]

async def later(completion):
    import asyncio
    await asyncio.sleep(1.0)
    return 1.0

def who(completion):
    return Reward(1.0, str(os.getpid()))

def trouble(completion):  # what the completion says
    if completion == "hang":
        while True:
            pass
    if completion == "sleep":
        time.sleep(600)
    if completion == "die":
        os._exit(3)
    if completion == "raise":
        raise KeyError("no such city")
    if completion == "leave":
        sys.exit("enough")
    if completion == "print":
        print("to the driver's output")
    return {"nan": float("nan"), "text": "1.0", "list": [1.0], "none": None}.get(completion, 1.0)

def hanging_batch(completions, **columns):
    if "hang" in completions:
        time.sleep(600)
    return [1.0] * len(completions)

def short(completions, **columns):
    return [1.0]

class Listed:
    independent = True

    def __call__(self, samples):
        if any(sample.completion == "hang" for sample in samples):
            time.sleep(600)
        return [Reward(1.0, "correct") for _ in samples]

def broken_down(completion):
    logs = {"steps": 3, "huge": 10**400, "text": "no number", "endless": float("inf"), "handle": sys.stderr}
    return Reward(1.5, parts={"right": 1, "short": 0.25}, logs=logs)

def with_child(completion):
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    time.sleep(600)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return path


def config(fn: str, *, processes: int = 1, timeout: float = 20.0, **kwargs: object) -> RewardConfig:
    return RewardConfig(fn=fn, kwargs=kwargs, workers=processes, timeout=timeout)


def group(*completions: str, id: str = "p", answer: str = "a", **row: object) -> Group:
    rollouts = tuple(
        Rollout(tokens=(7, i), logprobs=(0.0, 0.0), text=text, finish_reason="stop", weight_version=3, seed=i)
        for i, text in enumerate(completions)
    )
    prompt = Prompt(id=id, tokens=(1,), text=f"question {id}", meta={"answer": answer, **row})
    return Group(prompt=prompt, rollouts=rollouts)


def scores(cfg: RewardConfig, *groups: Group) -> list[Sequence[Score]]:
    with build_reward(cfg) as reward:
        return [found.result() for found in [reward(group) for group in groups]]


def test_scores_come_in_order_with_reason_and_time(plugin: Path) -> None:
    first, second = scores(config(f"{plugin}:length", unit=2.0), group("a", "bcd"), group("", "efgh", id="q"))
    assert [(score.value, score.reason) for score in first] == [(0.5, "correct"), (1.5, "wrong: bcd")]
    assert [(score.value, score.kind) for score in second] == [(0.0, "wrong"), (2.0, "wrong")]
    assert all(0 < score.seconds < 1 for score in (*first, *second))


def test_the_function_sees_the_rollout_and_the_row(plugin: Path) -> None:
    [[_, second]] = scores(config(f"{plugin}:columns"), group("x", "y", answer="42"))
    assert second.reason == repr(("question p", "y", (7, 1), "stop", "42"))


def test_a_batch_function_gets_a_group_and_the_step(plugin: Path) -> None:
    found = scores(config(f"{plugin}:batch", processes=2), group("x", "y", "y"), group("z", id="q", answer="b"))
    assert [[score.value for score in group] for group in found] == [[5.0] * 3, [1.0]]


def test_coroutines_of_a_group_wait_together(plugin: Path) -> None:
    [found] = scores(config(f"{plugin}:later"), group(*"abcdefgh"))
    assert [score.value for score in found] == [1.0] * 8
    assert found[0].seconds < 8 * 1.0


def test_parts_and_numbers_of_the_logs_come_along(plugin: Path) -> None:
    [[score]] = scores(config(f"{plugin}:broken_down"), group("x"))
    assert (score.parts, score.logs) == ({"right": 1.0, "short": 0.25}, {"steps": 3.0})
    assert score.correct and score.value == 1.5


@pytest.mark.parametrize("fn", ["listed", "composite"])
def test_an_object_that_judges_samples_on_their_own_loses_only_the_one_that_hangs(plugin: Path, fn: str) -> None:
    """Once per batch, a single hang took the verdicts of its whole group, and all had the latency of the group."""
    cfg = config(f"{plugin}:Listed", timeout=1.0)
    if fn == "composite":
        cfg = config("composite", timeout=1.0, rewards=[f"{plugin}:Listed", "format"])
    [found] = scores(cfg, group("x", "hang", "y"))
    assert [score.reason for score in found] == ["correct", "deadline", "correct"]
    assert [score.seconds >= 1 for score in found] == [False, True, False]


def test_processes_that_were_never_asked_end_without_a_word(plugin: Path) -> None:
    """Their channel closes before anyone has read that they are ready, and so ends with a reset."""
    script = f"""
import select
from rlkit.scoring.pool import build_reward
from rlkit.config import RewardConfig
with build_reward(RewardConfig(fn={f"{plugin}:length"!r}, kwargs={{}}, workers=2, timeout=5)) as reward:
    assert all(select.select([worker.process._channel._socket], [], [], 60)[0] for worker in reward._workers)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_worker_works_and_none_is_the_driver(plugin: Path) -> None:
    with build_reward(config(f"{plugin}:who", processes=2)) as reward:
        pids: set[str] = set()
        deadline = time.monotonic() + 30
        while len(pids) < 2 and time.monotonic() < deadline:  # until both have loaded it
            pids |= {score.reason for found in [reward(group("x")) for _ in range(8)] for score in found.result()}
        assert len(pids) == 2 and str(os.getpid()) not in pids
        assert {int(pid) for pid in pids} <= {pid for pid, _ in below({os.getpid()})}
    assert not {int(pid) for pid in pids} & {pid for pid, _ in below({os.getpid()})}


def test_a_plugin_found_on_the_drivers_path(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(plugin.parent))
    [[score]] = scores(config("plugin:length"), group("abc"))
    assert score.value == 3.0


def test_what_a_plugin_prints_does_not_disturb_it(plugin: Path) -> None:
    [[score]] = scores(config(f"{plugin}:trouble"), group("print"))
    assert score.value == 1.0


@pytest.mark.parametrize(
    ("fn", "completion", "words"),
    [
        ("trouble", "raise", ["raised KeyError: 'no such city", "question p", "[prompt 'p', from rollout 1 on]"]),
        ("trouble", "leave", ["SystemExit: enough", "[prompt 'p', from rollout 1 on]"]),
        ("trouble", "nan", ["returned 'nan'", "question p", "from rollout 1 on"]),
        ("trouble", "text", ["returned '1.0'", "return a finite number"]),
        ("trouble", "list", ["returned '[1.0]'"]),
        ("short", "x", ["must return a list of 3 rewards", "not 1 values"]),
        ("columns", "x", ["needs answer", "from rollout 0 on"]),
    ],
)
def test_a_wrong_reward_is_an_error_that_names_the_sample(
    plugin: Path, fn: str, completion: str, words: list[str]
) -> None:
    wrong = group("fine", completion, "fine")
    if fn == "columns":
        wrong = Group(prompt=Prompt(id="p", tokens=(), text="question p", meta={}), rollouts=wrong.rollouts)
    with build_reward(config(f"{plugin}:{fn}")) as reward:
        with pytest.raises(RewardError) as raised:
            reward(wrong).result()
        for word in words:
            assert word in str(raised.value)
        if does := {"raise": "raise KeyError", "leave": "sys.exit("}.get(completion):
            line = next(n for n, text in enumerate(PLUGIN.splitlines(), 1) if does in text)
            assert f" at {plugin}:{line} (on sample" in str(raised.value)
        cause = raised.value.__cause__
        assert cause is not None and "Traceback" in cause.__notes__[0], "the plugin's own lines are shown"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("import os\nos._exit(1)", "ended the process"),
        ("import sys\nsys.exit(1)", "SystemExit"),
    ],
)
def test_a_module_that_does_not_load_there_is_an_error(tmp_path: Path, source: str, words: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(f"def f(completion):\n    return 1.0\n{source}\n")
    with build_reward(config(f"{path}:f")) as reward, pytest.raises(RewardError, match=words):
        reward(group("x")).result()


@pytest.mark.parametrize("how", ["hang", "sleep"])
def test_one_that_hangs_is_killed_and_the_others_are_judged(plugin: Path, how: str) -> None:
    with build_reward(config(f"{plugin}:trouble", timeout=1.0)) as reward:
        first = reward(group("x", how, "y", "none")).result()
        second = reward(group("x", id="q")).result()
    assert [(score.value, score.kind) for score in first] == [
        (1.0, ""), (None, "deadline"), (1.0, ""), (None, "no_verdict"),
    ]  # fmt: skip
    assert first[1].seconds == 1.0
    assert [score.value for score in second] == [1.0], "the process is replaced"


def test_a_batch_that_hangs_has_no_verdict_after_the_time_of_all_its_samples(plugin: Path) -> None:
    start = time.monotonic()
    hung, fine = scores(config(f"{plugin}:hanging_batch", timeout=2.0), group("x", "hang", "y"), group("x", id="q"))
    assert [(score.value, score.reason) for score in hung] == [(None, "deadline")] * 3
    assert [score.value for score in fine] == [1.0]
    assert hung[0].seconds == pytest.approx(6.0)
    assert time.monotonic() - start < 25


def test_one_that_ends_its_process_costs_itself_only(plugin: Path) -> None:
    [found] = scores(config(f"{plugin}:trouble"), group("x", "die", "die", "y"))
    assert [(score.value, score.kind) for score in found] == [
        (1.0, ""), (None, "worker_lost"), (None, "worker_lost"), (1.0, ""),
    ]  # fmt: skip


def test_a_reward_that_always_hangs_stops_the_run_long_before_its_last_sample(plugin: Path) -> None:
    groups = [group(*["sleep"] * 4, id=f"p{i}") for i in range(25)]
    start = time.monotonic()
    with build_reward(config(f"{plugin}:trouble", processes=2, timeout=0.05)) as reward:
        judged = [(group, reward(group)) for group in groups]
        with pytest.raises(
            NoVerdictError, match=r"of 100 rollouts have no verdict \(deadline \d+\).*raise reward.timeout"
        ):
            collect(judged, [group.prompt for group in groups])
    assert time.monotonic() - start < 30
    assert sum(scores.done() and not scores.cancelled() for _, scores in judged) < 10


def test_what_a_killed_process_started_is_killed_too(plugin: Path) -> None:
    before = below({os.getpid()})
    [[score]] = scores(config(f"{plugin}:with_child", timeout=1.0), group("x"))
    assert score.kind == "deadline"
    assert below({os.getpid()}) <= before
    ours, sleeps = os.environ["RLKIT_TEST_SESSION"].encode(), b"-c\0import time; time.sleep(600)\0"
    processes = list(Path("/proc").glob("[0-9]*"))
    assert not [p for p in processes if read(p / "cmdline").endswith(sleeps) and ours in read(p / "environ")]


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


def test_closing_does_not_wait_for_what_is_queued_or_running(plugin: Path) -> None:
    start = time.monotonic()
    with build_reward(config(f"{plugin}:trouble")) as reward:
        for i in range(20):
            reward(group("sleep", id=f"p{i}"))
    assert time.monotonic() - start < 10


def test_closing_ends_with_a_group_that_has_no_process_yet(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread comes for a process only when `close` has taken all of them and waits for the threads."""
    entered, taken = threading.Event(), threading.Event()
    reward = Scorer(config(f"{plugin}:length"))

    def sample(*_: object) -> None:
        entered.set()
        taken.wait()

    monkeypatch.setattr("rlkit.scoring.pool._sample", sample)
    shutdown = reward._threads.shutdown

    def end(wait: bool = True, cancel_futures: bool = False) -> None:
        if wait:
            taken.set()
        shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(reward._threads, "shutdown", end)
    found = reward(group("x"))
    entered.wait()
    closing = threading.Thread(target=reward.close, daemon=True)
    closing.start()
    closing.join(60)
    ended = not closing.is_alive()
    reward._idle.put(None)  # should it hang, the other tests go on
    assert ended and isinstance(found.exception(), RuntimeError)


# A driver whose rewards hang: in C code, asleep, or in a program that runs in the sandbox.
DRIVER = """
import os, sys, time
from rlkit.cluster.reaper import reaped
from rlkit.scoring.pool import build_reward
from rlkit.config import RewardConfig
from tests.scoring.test_pool import LOOP, group
with reaped(), build_reward(RewardConfig(fn=sys.argv[1], kwargs={}, workers=2, timeout=600)) as reward:
    first = reward(group("x", test_list=["assert f() == 1"])).result()
    busy = [reward(group(how, id=how, test_list=["assert f() == 1"])) for how in ("hang", "sleep", LOOP)]
    print(os.environ["RLKIT_RUN"], flush=True)
    time.sleep(600)
"""
LOOP = "<answer>def f():\n    while True: pass</answer>"


@pytest.mark.parametrize("fn", ["trouble", "code"])
def test_no_reward_process_outlives_a_killed_driver(plugin: Path, fn: str) -> None:
    program = [sys.executable, "-c", DRIVER, f"{plugin}:trouble" if fn == "trouble" else fn]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        mark = driver.stdout.readline().strip()
        started = below({driver.pid})
        assert len(started) >= 3, "two reward processes and the reaper"
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    deadline = time.monotonic() + 10
    while (left := marked(mark) | {birth for birth in started if alive(birth)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_a_sandbox_ends_with_the_process_that_is_killed() -> None:
    before = below({os.getpid()})
    with build_reward(config("code", timeout=1.0, wall=100.0, workers=1)) as reward:
        [score] = reward(group(LOOP, test_list=["assert f() == 1"])).result()
        assert score.kind == "deadline"
    deadline = time.monotonic() + 5
    while (left := below({os.getpid()}) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def alive(birth: Birth) -> bool:
    """Whether that very process still runs; the id alone may be somebody else's by now."""
    try:
        after_name = Path(f"/proc/{birth[0]}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return after_name[0] != "Z" and after_name[19] == birth[1]


def test_scoring_64_rollouts_costs_the_driver_little(plugin: Path) -> None:
    """CPU time of this process, at its best of ten, against that of writing the same groups down."""
    groups = [group(*(f"{'x' * 200}{i}" for i in range(8)), id=f"p{i}") for i in range(8)]
    with build_reward(config(f"{plugin}:length", processes=2)) as reward:
        costs, units = [], []
        for _ in range(10):
            start = time.process_time()
            collect([(group, reward(group)) for group in groups], [group.prompt for group in groups])
            costs.append(time.process_time() - start)
            start = time.process_time()
            pickle.dumps(groups)
            units.append(time.process_time() - start)
    assert min(costs) < 25 * min(units), f"{min(costs) * 1000:.1f} ms, pickled in {min(units) * 1000:.2f} ms"
