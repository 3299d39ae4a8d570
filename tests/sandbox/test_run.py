"""How programs end, and that they run as `python main.py` would."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Limits, Sandbox

pytestmark = pytest.mark.slow

LIMITS = Limits(wall=10.0, cpu=5.0, memory_mb=256, processes=8, output_kb=64, disk_mb=8)
ROOT = os.getuid() == 0


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox("namespaces", workers=1, limits=LIMITS) as box:
        yield box


ENDINGS = [  # program, status, exit code, signal, what its stderr says
    ("print(1)", "ok", 0, None, ""),
    ("", "ok", 0, None, ""),
    ("import sys; sys.exit()", "ok", 0, None, ""),
    ("import sys; sys.exit(3)", "exited", 3, None, ""),
    ("exit(4)", "exited", 4, None, ""),
    ("quit('why')", "exited", 1, None, "why\n"),
    ("import sys; sys.exit(-1)", "exited", 255, None, ""),
    ("import os; os._exit(7)", "exited", 7, None, ""),
    ("1 / 0", "exited", 1, None, "ZeroDivisionError: division by zero"),
    ("raise KeyboardInterrupt", "exited", 1, None, "KeyboardInterrupt"),
    ("def f(): return f()\nf()", "exited", 1, None, "RecursionError"),
    ("x = (", "compile_error", 1, None, "SyntaxError: '(' was never closed"),
    ("return 1", "compile_error", 1, None, "SyntaxError: 'return' outside function"),
    ("a = '\0'", "compile_error", 1, None, "null bytes"),
    ("x = '\ud800'", "compile_error", 1, None, "SyntaxError"),
    ("(" * 5000 + ")" * 5000, "compile_error", 1, None, "too many nested parentheses"),
    ("import os; os.abort()", "crashed", None, 6, ""),
    ("import ctypes; ctypes.string_at(0)", "crashed", None, 11, ""),
    ("import os; os.kill(os.getpid(), 9)", "crashed", None, 9, ""),
    ("x = 'a' * 10**10", "memory", 1, None, "MemoryError"),
    ("x = [bytearray(1 << 20) for _ in range(1000)]", "memory", 1, None, "MemoryError"),
    (
        "import os; os.kill(1, 9); os.kill(1, 15)",
        *(("exited", 1, None, "PermissionError") if ROOT else ("ok", 0, None, "")),
    ),
]


@pytest.mark.parametrize(("code", "status", "exit_code", "signal", "words"), ENDINGS)
def test_every_ending_has_its_status(
    box: Sandbox, code: str, status: str, exit_code: int | None, signal: int | None, words: str
) -> None:
    result = box.run(code)
    assert (result.status, result.exit_code, result.signal) == (status, exit_code, signal), result
    assert words in result.stderr
    assert 0 < result.wall < LIMITS.wall
    assert 0 < result.memory_mb < 300


def test_a_program_behaves_as_in_a_plain_interpreter(box: Sandbox, tmp_path: Path) -> None:
    """Parity with `python main.py` for output, exit code and traceback, character by character."""
    programs = [
        "import sys; print(__name__, __file__, sys.argv)",
        "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)",
        "def f(x):\n    return 1 / x\ntry:\n    f(0)\nexcept ZeroDivisionError as e:\n    raise KeyError('b') from e\n",
        "x = (\n",
        "print(input(), input())\ninput()",
        "import sys\nfor line in sys.stdin: print(line.split())",
        "print(open(0).read().upper())",
        "import atexit; atexit.register(print, 'bye'); print('hi')",
        "import threading; late = threading.Timer(0.05, print, ['late']); print('soon'); late.start()",
        "import sys; sys.stdout.write('no newline')",
        "import sys; sys.stdout.buffer.write(bytes(range(1, 128)))",
        "print('\\u00e9\\u4e2d\\U0001f600')",
        "class A:\n    def __del__(self): print('gone')\na = A(); del a",
        "class A:\n    def __del__(self): print('gone', __name__)\na = A()",
        "out = open(1, 'w'); out.write('12\\n')",
        "import os\ndef f(): return out\nout = os.fdopen(1, 'w'); print(12, file=out)",
        "import io, sys\nbuf = sys.stdout = io.StringIO(); print(12); sys.__stdout__.write(buf.getvalue())",
        "import sys; print(12); sys.stdout.close()",
        "import sys; print(12); sys.stderr.close()",
        "import sys; print(12); sys.stdout = None",
        "import pickle\nclass P: x = 1\nprint(pickle.loads(pickle.dumps(P())).x)",
        "import sys; sys.setrecursionlimit(20000)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(15000))",
        "import sys; sys.exit('text')",
        "raise SystemExit(256)",
        "assert __import__('inspect').getsource(__import__('__main__')).startswith('assert')",
    ]
    stdin = "one two\nthree\n"
    for code in programs:
        (tmp_path / "main.py").write_text(code)
        plain = subprocess.run(
            [sys.executable, "-s", "main.py"], cwd=tmp_path, input=stdin.encode(), capture_output=True,
            env={"LANG": "C.UTF-8"},
        )  # fmt: skip
        ours = box.run(code, stdin)
        expected = [text.decode().replace(str(tmp_path), "/box") for text in (plain.stdout, plain.stderr)]
        assert (ours.stdout, ours.stderr, ours.exit_code) == (*expected, plain.returncode), code


def test_a_program_may_open_its_streams_by_name(box: Sandbox) -> None:
    """As programs for contests do; each is opened anew, so that it begins at its begin."""
    programs = [
        ("print(open('/dev/stdin').read())", "one two\nthree\n\n"),
        ("print(open('/dev/fd/0').readline(), open('/proc/self/fd/0').readline())", "one two\n one two\n\n"),
        ("import sys\nsys.stdin = open('/dev/stdin')\nprint(input(), input())", "one two three\n"),
        ("import pathlib; print(pathlib.Path('/dev/stdin').read_text().split())", "['one', 'two', 'three']\n"),
        ("import fileinput\nfor line in fileinput.input('/dev/stdin'): print(len(line))", "8\n6\n"),
        ("import os; print(os.read(os.open('/dev/stdin', 0), 3), os.path.exists('/dev/stdin'))", "b'one' True\n"),
        ("import sys; print(sys.stdin.buffer.readline())\n"
        "with open('/dev/stdin') as f: print(*f)", "b'one two\\n'\none two\n three\n\n"),
        ("with open('/dev/stdout', 'w') as f: f.write('a')\nprint('b')", "ab\n"),
        ("with open('/dev/fd/1', 'a') as f: print('a', file=f)\nprint('b')", "a\nb\n"),
        ("import sys\nsys.stdout = open('/dev/stdout', 'w')\nprint('a')", "a\n"),
        ("import sys\nprint('a', file=open('/dev/stderr', 'w'))\nopen('/dev/fd/2', 'w').write('a\\n')", ""),
        ("import os; print(sorted(os.listdir('/dev/fd'))[:3])", "['0', '1', '2']\n"),
    ]  # fmt: skip
    for code, printed in programs:
        result = box.run(code, "one two\nthree\n")
        assert (result.status, result.stdout) == ("ok", printed), (code, result)
    sealed = "import os\ntry: os.write(os.open('/dev/stdin', os.O_RDWR), b'x')\nexcept PermissionError: print('sealed')"
    assert box.run(sealed, "one").stdout == "sealed\n"


def test_numpy_reads_dev_stdin() -> None:
    pytest.importorskip("numpy")
    with Sandbox("namespaces", workers=1, imports=["numpy"]) as box:
        code = "import numpy\nprint(int(numpy.loadtxt('/dev/stdin').sum()), int(numpy.loadtxt(open(0)).sum()))"
        assert box.run(code, "1 2\n3 4\n").stdout == "10 10\n"


def test_one_deadline_bounds_what_waits_and_what_works(box: Sandbox) -> None:
    for code in (
        "import time; time.sleep(60)",
        "while True: pass",
        "import os\nif os.fork(): os.wait()\nwhile 1: pass",
    ):
        result = box.run(code, limits=Limits(wall=0.3))
        assert (result.status, result.exit_code) == ("timeout", None)
        assert 0.3 <= result.wall < 2.0
    late = box.run("import time, sys; print('right', flush=True); time.sleep(60)", limits=Limits(wall=2.0))
    assert (late.status, late.stdout) == ("timeout", "right\n")
    late = box.run("import atexit, time; print('right'); atexit.register(time.sleep, 60)", limits=Limits(wall=0.3))
    assert late.status == "timeout"


def test_the_cpu_limit_holds_even_where_its_signal_is_ignored(box: Sandbox) -> None:
    ignore = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
    for code, by in (("while True: pass", 24), (ignore + "while True: pass", 9)):
        result = box.run(code, limits=Limits(wall=60.0, cpu=1.0))
        assert (result.status, result.signal) == ("timeout", by)
        assert 0.5 < result.cpu < 4.0  # the kernel counts ticks


def test_output_is_cut_at_its_limit(box: Sandbox) -> None:
    flood = box.run("while True: print('x' * 1000)")
    assert flood.status == "output_limit"
    assert len(flood.stdout) == 64 * 1024
    both = "import os\nos.write(1, b'a' * 40000); os.write(2, b'b' * {})"
    assert box.run(both.format(25536)).status == "ok"
    assert box.run(both.format(25537)).status == "output_limit"
    assert len(box.run("print('y' * 65535)").stdout) == 65536
    assert box.run(r"import os; os.write(1, b'\xff\xfeok')").stdout == "\ufffd\ufffdok"


def test_memory_is_bounded_for_all_processes_together(box: Sandbox) -> None:
    family = (
        "import os, time\nfor _ in range(4):\n    if not os.fork(): break\n"
        "x = bytearray(os.urandom(1)) * ({} << 20); time.sleep({})"
    )
    result = box.run(family.format(120, 20))
    assert result.status == "memory", result
    assert result.wall < 5.0
    assert box.run(family.format(10, 0.2)).status == "ok"


def test_processes_threads_files_and_disk_are_bounded(box: Sandbox) -> None:
    bomb = (
        "import os\nn = 0\ntry:\n    while os.fork(): n += 1\n    os._exit(0)\nexcept OSError as e: print(n, e.errno)"
    )
    done = box.run(bomb.replace("os._exit(0)", "import time; time.sleep(60)"))
    assert (done.status, done.stdout) == ("ok", "7 11\n"), done  # 8 with itself; EAGAIN
    threads = (
        "import threading, time\nn = 0\ntry:\n    for n in range(50):\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nexcept RuntimeError: print(n)"
    )
    assert box.run(threads).stdout == "7\n"
    files = "import os\ntry:\n    while 1: os.open('/dev/null', 0)\nexcept OSError as e: print(e.errno)"
    assert box.run(files).stdout == "24\n"
    disk = (
        "import os\nn = 0\ntry:\n    while 1:\n        with open(f'{n}', 'wb') as f: f.write(bytes(1 << 20))\n"
        "        n += 1\nexcept OSError as e: print(n, e.errno)"
    )
    for folder in ("/box", "/tmp", "/dev/shm"):
        assert box.run(f"import os; os.chdir({folder!r})\n{disk}").stdout == "7 28\n"  # ENOSPC; main.py has a page
    one = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen('/tmp/a', 'wb').write(bytes(9 << 20))"
    assert "OSError" in box.run(one).stderr


def test_nothing_stays_for_the_next_program(box: Sandbox) -> None:
    leave = (
        "import os, builtins, sys, random\n"
        "for folder in ('/box', '/tmp', '/dev/shm'): open(folder + '/left', 'w').write('x')\n"
        "builtins.print = None; sys.modules['math'] = None; os.environ['LEFT'] = 'x'; random.seed(0)\n"
        "if not os.fork():\n    os.setsid()\n    while True: os.sched_yield()\n"
    )
    look = (
        "import os, math\n"
        "print([os.listdir(f) for f in ('/box', '/tmp', '/dev/shm')], 'LEFT' in os.environ, math.pi)\n"
        "print(sorted(p for p in os.listdir('/proc') if p.isdigit()), os.getpid())"
    )
    before = box.run(look)
    assert before.stdout.splitlines()[1] == "['1', '2'] 2"
    assert box.run(leave).status == "ok"
    assert box.run(look).stdout == before.stdout


def test_programs_see_little_of_the_host(box: Sandbox) -> None:
    look = (
        "import os, pwd, socket\nprint(os.getuid(), os.getgid(), os.getgroups(), socket.gethostname() != '')\n"
        + "\n".join(
            f"print(os.path.exists({path!r}))"
            for path in ("/etc/shadow", "/bin/sh", "/usr/bin", "/home", "/sys/kernel", __file__)
        )
    )
    assert box.run(look).stdout.splitlines() == [
        "1000 1000 [] True" if os.getuid() == 0 else "1000 1000 [65534] True",
        *["False"] * 6,
    ]
    status = dict(
        line.split(":\t")
        for line in box.run("print(open('/proc/self/status').read())").stdout.splitlines()
        if ":\t" in line
    )
    capabilities = {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert capabilities == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    environment = box.run("print(open('/proc/self/environ').read().split('\\0'))").stdout
    assert environment == "['PYTHONHASHSEED=0', '']\n"


def test_sets_print_the_same_every_time_and_random_numbers_do_not() -> None:
    code = "print({'a', 'b', 'c', 'd', 'e', 'f'})\nimport random; print(random.random())"
    with Sandbox("namespaces", workers=2) as box:
        runs = [box.run(code).stdout.splitlines() for _ in range(4)]
    assert len({order for order, _ in runs}) == 1
    assert len({number for _, number in runs}) == 4


def test_named_modules_can_be_imported_and_no_others(box: Sandbox) -> None:
    assert "ModuleNotFoundError" in box.run("import numpy").stderr
    assert "ModuleNotFoundError" in box.run("import sandbox").stderr
    with Sandbox("namespaces", workers=1, imports=["numpy", "sqlite3"]) as other:
        result = other.run("import sys; print('numpy' in sys.modules)\nimport numpy.linalg as l; print(l.norm([3, 4]))")
        assert result.stdout == "True\n5.0\n", result
        import numpy

        writable = f"import os; print(os.access({os.path.dirname(numpy.__file__)!r}, os.W_OK))"
        assert other.run(writable).stdout == "False\n"


@pytest.mark.parametrize("place", ["site-packages", "plain"])
def test_imports_may_lie_in_the_hosts_tmp(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the job has a folder of its own: it sees what it imports in there, cannot change it, and may add to it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as outer:
        os.chmod(outer, 0o755)
        folder = Path(outer) / place
        (folder / "package").mkdir(parents=True)
        (folder / "package" / "__init__.py").touch()
        (folder / "package" / "late.py").write_text("value = 4")
        (folder / "single.py").write_text("value = 3")
        monkeypatch.syspath_prepend(folder)
        program = """
import os, single, package.late
open("/tmp/new", "w").write("x")
try:
    open(single.__file__, "w")
except OSError:
    print(single.value, package.late.value, len(os.listdir("/tmp")))
"""
        with Sandbox("namespaces", workers=1, imports=("single", "package")) as box:
            for _ in range(2):
                assert box.run(program).stdout == "3 4 2\n"
        assert not Path("/tmp/new").exists()
