"""`python -m sandbox run prog.py` runs one program; `python -m sandbox doctor` shows what this machine allows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from sandbox.box import Sandbox
from sandbox.doctor import report
from sandbox.levels import LEVELS
from sandbox.result import Limits, SandboxError


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line, in which every limit is a flag."""
    top = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="which levels work here, why not, and what the chosen one leaves open")
    run = commands.add_parser("run", help="run a program; its exit code is ours, 125 if it had none")
    run.add_argument("program", type=Path)
    run.add_argument("--stdin", type=Path, help="a file for its stdin (else empty)")
    run.add_argument("--level", default="auto", choices=("auto", *LEVELS))
    run.add_argument("--url", default="", help="for level remote")
    run.add_argument("--allow-unsafe", action="store_true", help="for level none")
    run.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help="may be repeated")
    for field in fields(Limits):
        kind = type(field.default)
        run.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar=kind.__name__)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says, and returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        if given.command == "doctor":
            return report()
        limits = Limits(**{field.name: vars(given)[field.name] for field in fields(Limits)})
        code = given.program.read_text(encoding="utf-8")
        stdin = given.stdin.read_text(encoding="utf-8") if given.stdin else ""
        with Sandbox(given.level, 1, given.imports, limits, url=given.url, allow_unsafe=given.allow_unsafe) as box:
            result = box.run(code, stdin)
    except (OSError, UnicodeDecodeError, ValueError, SandboxError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 125
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    print(
        f"[{result.status}] wall {result.wall:.2f} s, cpu {result.cpu:.2f} s, {result.memory_mb:.0f} MiB, "
        f"level {box.level}" + (f", signal {result.signal}" if result.signal else ""),
        file=sys.stderr,
    )
    return result.exit_code if result.exit_code is not None and result.status in ("ok", "exited") else 125


if __name__ == "__main__":
    sys.exit(main())
