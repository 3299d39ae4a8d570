"""`rlkit checkpoint verify | convert`: is a checkpoint whole, are two the same, and from one dtype into another."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlkit.checks import number
from rlkit.errors import UserError
from rlkit.model.files.convert import convert_checkpoint
from rlkit.model.files.folder import DTYPES, Checkpoint
from rlkit.model.files.shards import MAX_SHARD_BYTES, read_headers
from rlkit.model.files.verify import checkpoint_faults, compare_checkpoints
from rlkit.watch.console import Console

USAGE = """usage: rlkit checkpoint verify A [B]
       rlkit checkpoint convert IN OUT --dtype bf16|fp8|fp8_weights|fp32 [--max-shard-gb 5]

  verify A     every tensor is there, in its shape, finite, and in FP8 with its scale
  verify A B   the same tensors: names, shapes, dtypes, SHA-256 of the bytes; exit code 1 and a table where they differ
  convert      write IN anew as OUT, a folder that does not exist yet, with config.json, tokenizer and other files"""
SHOWN = 50
"""Rows of a table, the rest is counted."""
GB = 1_000_000_000


def main(argv: Sequence[str]) -> None:
    """Runs one of the two commands; raises SystemExit with code 1 for a bad checkpoint, UserError for no command."""
    commands = {"verify": _verify, "convert": _convert}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if argv[0] not in commands:
        raise UserError(f"'rlkit checkpoint {argv[0]}' is not a command; there are {', '.join(commands)}\n\n{USAGE}")
    try:
        fine = commands[argv[0]](argv[1:])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if not fine:
        raise SystemExit(1)


def _verify(words: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(prog="rlkit checkpoint verify", description=USAGE.split("\n\n")[1])
    parser.add_argument("a", metavar="A", type=Path, help="a checkpoint folder")
    parser.add_argument("b", metavar="B", type=Path, nargs="?", help="another one, to compare with A")
    args = parser.parse_args(words)
    return _whole(args.a) if args.b is None else _same(args.a, args.b)


def _whole(folder: Path) -> bool:
    checkpoint = Checkpoint.open(folder)
    with Console(stream=sys.stderr).bar("verify", len(checkpoint.weights), "tensors") as bar:
        faults = list(checkpoint_faults(folder, bar.advance))
    kinds = Counter(stored.dtype for stored in checkpoint.weights.values())
    counted = ", ".join(f"{number} in {kind}" for kind, number in kinds.most_common())
    files = len({stored.file for stored in checkpoint.weights.values()})
    print(f"{folder}: {len(checkpoint.weights)} weights ({counted}) in {files} files")
    _table([("file", "tensor", "problem"), *((fault.file.name, fault.tensor, fault.problem) for fault in faults)])
    print(f"faults: {len(faults)}" if faults else "complete, finite, and as config.json says")
    return not faults


def _same(a: Path, b: Path) -> bool:
    names = read_headers(a).keys() | read_headers(b).keys()
    with Console(stream=sys.stderr).bar("compare", len(names), "tensors") as bar:
        found = list(compare_checkpoints(a, b, bar.advance))
    _table([("tensor", "differs in", "A", "B"), *((row.tensor, row.what, row.a, row.b) for row in found)])
    print(f"{len(found)} of {len(names)} tensors differ" if found else f"the same {len(names)} tensors")
    return not found


def _convert(words: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(
        prog="rlkit checkpoint convert", description="Write a checkpoint in another dtype."
    )
    parser.add_argument("source", metavar="IN", type=Path, help="a checkpoint folder")
    parser.add_argument("target", metavar="OUT", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--dtype", required=True, choices=DTYPES)
    parser.add_argument("--max-shard-gb", type=float, default=MAX_SHARD_BYTES / GB, help="per file (default 5)")
    args = parser.parse_args(words)
    number("--max-shard-gb", args.max_shard_gb, above=0, fix="5 is the default")
    total = len(Checkpoint.open(args.source).weights)
    with Console(stream=sys.stderr).bar("convert", total, "tensors") as bar:
        convert_checkpoint(args.source, args.target, args.dtype, max(1, int(args.max_shard_gb * GB)), bar.advance)
    print(f"{args.target}: {total} weights in {args.dtype}")
    return True


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows under their header in columns, at most SHOWN; nothing where there is only the header."""
    if len(rows) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*rows[: SHOWN + 1], strict=True)]
    for row in rows[: SHOWN + 1]:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(rows) > SHOWN + 1:
        print(f"and {len(rows) - SHOWN - 1} more")
