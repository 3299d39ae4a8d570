"""Folders of safetensors files: headers, one tensor at a time, and new folders that appear whole or not at all.

A folder holds one model.safetensors, or shards and an index that says which tensor is in which.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlkit.errors import UserError
from rlkit.model.config import CONFIG

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARRIED_SCALES = "fp8_scales.sft"
"""Holds the scales of the FP8 checkpoint that a folder was converted from, under a name that no engine loads."""
MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Describes a tensor as a file's header does; `dtype` is in the words of safetensors: F32, BF16, F8_E4M3."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_headers(path: str | Path) -> dict[str, Stored]:
    """Lists every tensor of a checkpoint folder, file by file, from the headers alone.

    Raises UserError, naming the file, the tensor and the fix, where there are no weights, a file is missing or cut
    short, or the index and the files contradict each other.
    """
    folder = Path(path)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}; only safetensors checkpoints can be loaded")
    listed = _read_index(folder / INDEX)
    found: dict[str, Stored] = {}
    for shard in sorted(set(listed.values())):
        file, wanted = folder / shard, {name for name in listed if listed[name] == shard}
        if not file.is_file():
            raise UserError(f"{file}: missing, but {INDEX} lists it for {min(wanted)}; copy the file again")
        header = read_header(file)
        for name in sorted(wanted - header.keys()):
            raise UserError(f"{file}: {name} is not in it, but {INDEX} says so; copy both files again")
        for name in sorted(header.keys() - wanted):
            raise UserError(f"{file}: {name} is in it, but {INDEX} does not say so; copy both files again")
        found |= header
    return found


def read_header(file: Path) -> dict[str, Stored]:
    """Lists the tensors of one file; raises UserError if it is cut short or not safetensors."""
    try:
        with safe_open(file, framework="pt") as reader:
            parts = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping
            return {
                name: Stored(file=file, dtype=part.get_dtype(), shape=tuple(part.get_shape()))
                for name, part in parts.items()
            }
    except SafetensorError as error:
        raise UserError(f"{file}: cut short or not safetensors ({error}); copy the file again") from error


def read_tensor(name: str, stored: Stored) -> Tensor:
    """Maps the tensor from its file: memory is taken as it is read, and given back with the tensor."""
    # A reader that stays open would keep what was read of the whole shard in memory.
    with safe_open(stored.file, framework="pt") as reader:
        return reader.get_tensor(name)


def _read_index(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not an index of shards ({error!r}); copy the file again") from error


class ShardWriter:
    """Writes tensors as they come into shards of at most `max_bytes`; what fits in one shard becomes one plain file.

    At most one shard is in memory. A tensor above `max_bytes` is a shard of its own.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_shard_bytes={max_bytes}: give a positive number of bytes")
        self._folder = folder
        self._max_bytes = max_bytes
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._written: list[list[str]] = []
        self._total_bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes tensors that belong into the same shard; they must not change until `finish`."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._waiting and self._waiting_bytes + size > self._max_bytes:
            self._flush()
        self._waiting_bytes += size
        self._waiting |= {name: tensor.contiguous() for name, tensor in tensors.items()}

    def finish(self) -> None:
        """Writes the last shard, gives the shards their names and writes the index."""
        self._flush()
        total = len(self._written)
        if total == 1:
            self._shard(0).rename(self._folder / SINGLE)
            return
        # A shard's published name says how many there are, which is known only now; until then it has a number.
        names = [f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total)]
        for i, name in enumerate(names):
            self._shard(i).rename(self._folder / name)
        where = {tensor: name for name, held in zip(names, self._written, strict=True) for tensor in held}
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(where.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _shard(self, i: int) -> Path:
        return self._folder / f"{i}.part"

    def _flush(self) -> None:
        # transformers refuses files that do not say which framework's tensors they hold.
        save_file(self._waiting, self._shard(len(self._written)), metadata={"format": "pt"})
        share(self._shard(len(self._written)))
        self._written.append(list(self._waiting))
        self._total_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0


def share(file: Path) -> None:
    """Lets those read a file who may read its folder: safetensors writes for its owner alone."""
    file.chmod(file.parent.stat().st_mode & 0o666)


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder beside `path` to write a checkpoint into, which takes the place of `path` when the block ends.

    If the block raises, or the process dies, what was at `path` is still there; the next call removes the remains.
    Files of an old folder that belong to no checkpoint (a tokenizer, a run's notes) stay in it.
    """
    # A rename is the only step of a file system that happens whole or not at all, so all writing goes on elsewhere. A
    # folder that is not empty cannot be renamed over, hence two renames; between them only `old` exists, and the next
    # call finds it.
    target = Path(path).resolve()
    new, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "replaced"))
    if old.exists() and not target.exists():  # killed between the two renames below
        old.rename(target)
    for remains in (new, old):
        shutil.rmtree(remains, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if target.exists():
            ours = shutil.ignore_patterns(CONFIG, INDEX, SINGLE, "model-*-of-*.safetensors", CARRIED_SCALES)
            _copy_others(target, new, ours, _link)
        for file in new.iterdir():
            _sync(file)
    except BaseException:
        shutil.rmtree(new)
        raise
    if target.exists():
        target.rename(old)
    new.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def copy_companions(source: Path, target: Path) -> None:
    """Copies what lies beside the weights: tokenizer, generation config, licence; no weights, no hidden files."""
    weights = shutil.ignore_patterns(".*", CONFIG, INDEX, CARRIED_SCALES, "*.safetensors", "*.bin", "*.pt", "*.pth")
    _copy_others(source, target, weights, shutil.copy2)


def _copy_others(
    source: Path, target: Path, ignored: Callable[[str, list[str]], set[str]], copy: Callable[[str, str], object]
) -> None:
    """Copies all of `source` but what is ignored at its top level."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        return ignored(folder, names) if Path(folder) == source else set()

    shutil.copytree(source, target, symlinks=True, ignore=ignore, copy_function=copy, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """Gives a file a second name, or makes a copy where the file system has no second names."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
