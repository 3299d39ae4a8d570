from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from sandbox import JobEnded, Limits, Sandbox, Session, wire

ECHO = "def echo(x): return x\ndef big(n): return 'x' * n\ndef pid():\n    import os\n    return os.getpid()\n"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox("namespaces", workers=1, limits=Limits(wall=5.0, memory_mb=256, output_kb=256)) as box:
        yield box


def call(session: Session, name: str, *arguments: Any) -> Any:
    kind, value, *_ = wire.loads(session.exchange(wire.dumps(("call", name, None, list(arguments), {}))))
    assert kind == "value", value
    return value


def test_messages_are_answered_in_order_until_the_session_is_closed(box: Sandbox) -> None:
    with box.session(ECHO) as session:
        assert [call(session, "echo", n) for n in range(50)] == list(range(50))
        assert call(session, "echo", "y" * 200_000) == "y" * 200_000
        result = session.close()
    assert (result.status, result.exit_code) == ("ok", 0)
    assert session.close() is result
    with pytest.raises(JobEnded):
        call(session, "echo", 1)
    assert box.run("print(1)").status == "ok"  # the only worker is free again


def test_what_is_printed_between_answers_is_kept_and_bounded(box: Sandbox) -> None:
    talk = "def talk(n):\n    print('z' * n, flush=True)\n    return n\n"
    with box.session(talk) as session:
        for _ in range(3):
            assert call(session, "talk", 70_000) == 70_000  # more than a pipe holds
        assert session.close().stdout == ("z" * 70_000 + "\n") * 3
    with box.session(talk) as session:
        with suppress(JobEnded):  # the last part may still be in the pipe when the answer comes
            call(session, "talk", 300_000)
        assert session.close().status == "output_limit"


ENDS = [  # code, status, exit code
    ("import sys; sys.exit(3)", "exited", 3),
    ("1 / 0", "exited", 1),
    ("x = (", "compile_error", 1),
    ("import os; os.abort()", "crashed", None),
    ("while True: pass", "timeout", None),
    ("def echo(x):\n    import os; os._exit(0)", "ok", 0),
    ("def echo(x):\n    import sys; sys.exit(9)", "exited", 9),
    ("def echo(x):\n    import time; time.sleep(60)", "timeout", None),
    ("def echo(x): return [0] * (1 << 62)", None, None),  # MemoryError is an answer, not an end
    ("def echo(x):\n    import os\n    os.write(3, b'\\xff\\xff\\xff\\xff')\n    return x", "output_limit", None),
    ("def echo(x):\n    import os\n    os.close(3)\n    return x", "exited", 1),
    ("def echo(x):\n    import os, time\n    os.close(3)\n    time.sleep(60)", "timeout", None),
    ("def echo(x):\n    import os\n    os.write(3, b'\\0\\0\\0\\x09half'); os._exit(4)", "exited", 4),
]


@pytest.mark.parametrize(("code", "status", "exit_code"), ENDS)
def test_a_program_that_ends_or_breaks_the_framing_ends_the_session(
    box: Sandbox, code: str, status: str | None, exit_code: int | None
) -> None:
    wall = 0.7 if status == "timeout" else 10.0
    with box.session(code, limits=Limits(wall=wall, memory_mb=256, output_kb=256)) as session:
        message = wire.dumps(("call", "echo", None, [1], {}))
        if status is None:
            assert wire.loads(session.exchange(message))[:2] == ("raised", "MemoryError")
            return
        with pytest.raises(JobEnded) as ended:
            session.exchange(message)
            session.exchange(message)
    assert (ended.value.result.status, ended.value.result.exit_code) == (status, exit_code), ended.value.result
    assert box.run("print(1)").stdout == "1\n"


def test_a_forged_answer_is_only_a_wrong_value(box: Sandbox) -> None:
    forged = wire.dumps(("value", 42))
    code = f"import os\ndef echo(x):\n    os.write(3, len({forged!r}).to_bytes(4, 'big') + {forged!r})\n    return x\n"
    with box.session(code) as session:
        assert [call(session, "echo", 1), call(session, "echo", 2)] == [42, 1]


@pytest.mark.slow
def test_the_deadline_is_one_for_the_whole_session(box: Sandbox) -> None:
    nap = "import time\ndef nap(s):\n    time.sleep(s)\n    return s\n"
    with box.session(nap, limits=Limits(wall=3.0)) as session:
        assert call(session, "nap", 0.8) == 0.8
        assert call(session, "nap", 0.8) == 0.8
        with pytest.raises(JobEnded) as ended:
            call(session, "nap", 2.5)  # alone it would be in time
    assert ended.value.result.status == "timeout"
    assert 3.0 <= ended.value.result.wall < 4.0
    late = "import atexit, time\natexit.register(time.sleep, 60)\ndef echo(x): return x\n"
    with box.session(late, limits=Limits(wall=2.0)) as session:
        assert call(session, "echo", 1) == 1
        assert session.close().status == "timeout"  # right answers and a late hang


def test_an_exception_of_the_caller_ends_the_program_at_once(box: Sandbox) -> None:
    busy = "def loop():\n    while True: pass\n"
    with pytest.raises(KeyError), box.session(busy, limits=Limits(wall=60.0)):
        raise KeyError
    assert box.run("print(1)", limits=Limits(wall=5.0)).status == "ok"


class Interrupted(Exception):
    pass


def test_an_interrupted_job_leaves_no_answer_for_the_next(box: Sandbox) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = len(os.listdir("/proc/self/fd"))
    kept = signal.signal(signal.SIGALRM, interrupt)
    try:
        for wait in (lambda: box.run("import time; time.sleep(1.5)"), box.session("import time; time.sleep(2)").close):
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted):
                wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    assert [box.run(f"print({n})").stdout for n in range(3)] == ["0\n", "1\n", "2\n"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_second_session_needs_no_free_worker(box: Sandbox) -> None:
    with box.session(ECHO) as first, box.session(ECHO, second=True) as other:
        assert call(first, "echo", call(other, "echo", 7)) == 7
    with box.session(ECHO) as first, box.session(ECHO, second=True) as other:  # kept from the last time
        assert call(first, "echo", call(other, "echo", 8)) == 8


def test_sessions_of_several_threads_do_not_mix() -> None:
    with Sandbox("namespaces", workers=2) as box:
        got: dict[int, list[int]] = {}

        def talk(number: int) -> None:
            with box.session(ECHO) as session:
                got[number] = [call(session, "echo", number * 1000 + n) for n in range(20)]

        threads = [threading.Thread(target=talk, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {number: [number * 1000 + n for n in range(20)] for number in range(5)}


def test_no_descriptor_of_the_caller_stays_open(box: Sandbox) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    box.run("")
    before = descriptors()
    for _ in range(5):
        box.run("print(1)")
        with box.session(ECHO) as session:
            call(session, "echo", 1)
        with pytest.raises(JobEnded), box.session("1 / 0") as session:
            call(session, "echo", 1)
    assert descriptors() == before
