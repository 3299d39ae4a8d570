"""Every attack scores 0 and leaves the host as it was, every ordinary program passes, for root and for other users.

What an attack must leave as it was is in `corpus.Host`: a file, a folder, sockets, processes, and a clean next job.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.sandbox import corpus, ordinary

HERE = Path(__file__).parent
ATTACKS = list(corpus.programs(HERE / "attacks"))
LEGITIMATE = list(corpus.programs(HERE / "legitimate"))
SECONDS = 280
HARMLESS = {
    "snoop": ("environment", "secret_file", "symlinks", "parent_folders", "roots"),
    "files": ("write_outside", "link_outside", "write_canary", "remove_canary"),
    "network": ("tcp", "udp", "tcp_raw_syscall", "fast_open", "abstract_socket", "abstract_datagram", "unix_socket"),
}
"""Attacks that can be let loose on a real host for a moment, to see that there they do what they claim."""


def run(folder: str, user: int | None, level: str = "auto") -> dict:
    """What corpus.py says, run by this interpreter, or by one that an ordinary user may read."""
    with ordinary.readable_copy() as copy:
        for name in ("corpus.py", folder):
            source, target = HERE / name, copy / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        python = sys.executable if user is None else ordinary.interpreter()
        imports = ["numpy"] if user is None and find_spec("numpy") else []
        done = subprocess.run(
            [python, "-B", "corpus.py", folder, level, *imports], cwd=copy, user=user, group=user, text=True,
            extra_groups=None if user is None else [], env={"PATH": os.environ["PATH"], "PYTHONPATH": str(copy)},
            capture_output=True, timeout=SECONDS,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def users() -> list[int | None]:
    """This one and, if this is root, an ordinary one."""
    return [None, ordinary.UID] if os.getuid() == 0 else [None]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
def test_no_attack_scores_and_none_leaves_a_trace() -> None:
    with ThreadPoolExecutor() as threads:  # most of the time goes into waiting for time limits
        for user, said in zip(users(), threads.map(partial(run, "attacks"), users()), strict=True):
            check_attacks(user, said)


def check_attacks(user: int | None, said: dict) -> None:
    tried = {(theme, name) for theme, name, *_ in said["results"]}
    assert tried == {(program.theme, program.name) for program in ATTACKS} and said["level"] == "namespaces"
    assert said["uid"] == (os.getuid() if user is None else user)
    passed = [(*where, verdicts) for *where, verdicts, _ in said["results"] if any(v[1] is not False for v in verdicts)]
    assert passed == []
    assert [(*where, harm) for *where, _, harm in said["results"] if harm] == []


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
def test_every_ordinary_program_passes() -> None:
    with ThreadPoolExecutor() as threads:
        for user, said in zip(users(), threads.map(partial(run, "legitimate"), users()), strict=True):
            check_legitimate(user, said)


def check_legitimate(user: int | None, said: dict) -> None:
    has_numpy = user is None and find_spec("numpy")
    expected = {(p.theme, p.name) for p in LEGITIMATE if has_numpy or "needs" not in p.settings}
    assert {(theme, name) for theme, name, *_ in said["results"]} == expected
    failed = [(*where, v, harm) for *where, v, harm in said["results"] if harm or not all(one[1] for one in v)]
    assert failed == []


def test_the_corpora_are_large_and_say_what_each_program_does() -> None:
    assert len(ATTACKS) >= 80 and len(LEGITIMATE) >= 40
    for programs in (ATTACKS, LEGITIMATE):
        names = Counter((program.theme, program.name) for program in programs)
        assert max(names.values()) == 1
        for program in programs:
            assert program.tries and program.code.strip(), program.name
            assert set(program.settings["modes"].split()) <= {"calls", "stdio", "asserts"}, program.theme
            compile(program.code.replace("@PARENT@", "0").replace("@PORT@", "0"), program.name, "exec")


def test_ordinary_programs_are_right_under_plain_python(tmp_path: Path) -> None:
    """Those of one theme, as a check of the corpus itself."""
    for program in LEGITIMATE:
        if program.theme == "language" and "deep_recursion" not in program.name:
            code = f"{program.code}\nprint(solve(3))"
            done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
            assert done.stdout == "10\n", (program.name, done.stderr)


def test_attacks_do_what_they_claim_where_nothing_holds_them(tmp_path: Path) -> None:
    """Without a sandbox the harmless ones among them read the secret, reach the sockets, change the files."""
    effects: dict[str, list[str]] = {}
    for program in ATTACKS:
        if program.name in HARMLESS.get(program.theme, ()):
            host = corpus.Host()
            main = "\nprint(solve(3))" if "def solve" in program.code else ""
            done = subprocess.run(
                [sys.executable, "-c", host.fill(program.code) + main],
                cwd=tmp_path, capture_output=True, text=True, timeout=30, env={"RLKIT_SECRET": host.secret},
            )  # fmt: skip
            effects[program.name] = host.harm() or (["read the secret"] if host.secret in done.stdout else [])
            host.remove()
    assert effects and [name for name, effect in effects.items() if not effect] == []
