"""What a run began with: its settings, and the files that it reads by path. A run that goes on must have the same.

A path in the settings says where a file lies, not what is in it. So the run's folder keeps a fingerprint of every file
that decides what is learned: data, reward, loss, and the model's folder. Fingerprints are SHA-256 of the whole file; of
a file above 64 MiB in a model's folder they are that of its length and of 64 pieces of 64 KiB, evenly spaced, because
hashing a large model would take minutes. Another model differs in all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rewards.model_score import PREFIX
from rewards.own_files import own_modules
from rlkit.config import DistillRun, OnPolicyDistillRun, RowsRun, RunConfig, SftRun
from rlkit.config.compose import flat_keys, to_yaml
from rlkit.data.sources import files_of
from rlkit.errors import UserError
from rlkit.run.imports import files_imported
from rlkit.watch.metrics import write_atomic

CONFIG_FILE = "config.yaml"
INPUTS_FILE = "inputs.json"
MAY_CHANGE = (
    *("resume", "dry_run", "output_dir", "cluster.address", "cluster.share_gpus", "logging.", "checkpoint."),
    *("evaluation.every", "reward.timeout", "reward.workers"),
    *("trainer.num_ranks", "trainer.expert_parallel", "trainer.pipeline", "trainer.zero_stage", "trainer.offload"),
    *("trainer.recompute", "selection.", "teacher.concurrency", "teacher.timeout", "teacher.retries"),
)
"""Keys that may differ when a run goes on; any other would make it another run.

How the trainer's ranks share the model out changes the last digits of a sum, and with trainer.dtype=fp8 which tokens
are rounded together; nothing else."""
FOLDERS = ("model.path ", "model.tokenizer ", "teacher.path ", PREFIX)
"""Beginnings of the records of files that lie in a model's folder: the policy's, a teacher's, or a reward model's."""
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Endings of the files that are read from a model's folder."""
WHOLE_BYTES = 2**26
PIECES, PIECE_BYTES = 64, 2**16


def check_same(cfg: RowsRun) -> None:
    """Raises UserError if the folder holds a run that began with other settings or other files."""
    saved = cfg.output_dir / CONFIG_FILE
    if not saved.exists():
        return
    if cfg.resume == "never":
        raise UserError(
            f"output_dir={cfg.output_dir} already holds a run, and resume=never; set resume=auto to continue it, or "
            "another output_dir"
        )
    _check_settings(cfg, _read(saved, yaml.safe_load))
    inputs = cfg.output_dir / INPUTS_FILE
    if inputs.exists():
        _check_files(cfg, _read(inputs, json.loads))


def settings_of(cfg: RowsRun) -> dict[str, Any]:
    """Returns the settings that may not change when a run goes on, under their flat keys."""
    return {key: value for key, value in _flat(yaml.safe_load(to_yaml(cfg))).items() if not key.startswith(MAY_CHANGE)}


def without_caches(settings: Any) -> Any:
    """Returns settings without the files where judges keep answers, however deep in a composite reward.

    Such a file grows while it is used, and says nothing of what is learned.
    """
    return without_judges_own(settings, frozenset({"cache"}))


def without_judges_own(settings: Any, names: Collection[str]) -> Any:
    """Returns settings without these of every reward=judge among them, however deep in a composite reward."""
    if isinstance(settings, list | tuple):
        return [without_judges_own(entry, names) for entry in settings]
    if not isinstance(settings, Mapping):
        return settings
    kept = {key: without_judges_own(value, names) for key, value in settings.items()}
    if kept.get("fn") == "judge" and isinstance(kept.get("kwargs"), dict):
        kept["kwargs"] = {key: value for key, value in kept["kwargs"].items() if key not in names}
    return kept


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flat_keys(without_caches(settings)))


def write_inputs(cfg: RowsRun, found: Mapping[str, str] | None = None) -> None:
    """Writes down what the run begins with; the files' fingerprints, `found` if given, at its first start only."""
    write_atomic(cfg.output_dir / CONFIG_FILE, to_yaml(cfg))
    if not (cfg.output_dir / INPUTS_FILE).exists():
        found = fingerprints(cfg) if found is None else found
        write_atomic(cfg.output_dir / INPUTS_FILE, json.dumps(found, indent=1) + "\n")


def first_inputs(cfg: RowsRun) -> dict[str, str]:
    """Returns the fingerprints that were written down at the run's first start, or those of now where none were."""
    inputs = cfg.output_dir / INPUTS_FILE
    return dict(_read(inputs, json.loads)) if inputs.exists() else fingerprints(cfg)


def fingerprints(cfg: RowsRun) -> dict[str, str]:
    """Returns the fingerprint of every file that a run reads by path, under the key that names it, and its own name."""
    # What is streamed may be larger than what can be read before every start.
    found = {f"{key} {file.name}": digest(file, sampled="mixture" in key) for key, file in _named_files(cfg)}
    asked = cfg.reward.models if isinstance(cfg, RunConfig) else []
    folders = {"model.path": cfg.model.path, "model.tokenizer": cfg.model.tokenizer}
    folders["teacher.path"] = cfg.teacher.path if isinstance(cfg, OnPolicyDistillRun) else ""
    folders = {key: folder for key, folder in folders.items() if folder}
    for key, folder in {**folders, **{one.name: one.folder for one in asked}}.items():
        for file in sorted(Path(folder).iterdir()):
            if file.is_file() and file.suffix in MODEL_FILES:
                found[f"{key} {file.name}"] = digest(file, sampled=True)
    return found


def digest(file: Path, *, sampled: bool = False) -> str:
    """Returns the SHA-256 of a file; with `sampled` a large one is read in pieces (see the head of this file)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if not sampled or size <= WHOLE_BYTES:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        running = hashlib.sha256(str(size).encode())
        for piece in range(PIECES):
            stream.seek((size - PIECE_BYTES) * piece // (PIECES - 1))
            running.update(stream.read(PIECE_BYTES))
    return f"sampled:{running.hexdigest()}"


def _named_files(cfg: RowsRun) -> Iterator[tuple[str, Path]]:
    """Yields the key and the file of everything but the model; names that are no files are passed over."""
    for key, source in (("data.source", cfg.data.source), ("data.eval_source", cfg.data.eval_source)):
        for file in files_of(source) if source else ():
            yield key, file
    for i, part in enumerate(cfg.data.mixture if isinstance(cfg, SftRun) else ()):
        yield from ((f"data.mixture[{i}].source", file) for file in files_of(part.source))
    for key, value in _flat(yaml.safe_load(to_yaml(cfg))).items():
        if key == "cleaning.tests":
            yield from ((key, file) for text in texts_of(value) for file in files_of(text))
        if key in ("reward.fn", "algo.loss_fn") or key.startswith("reward.kwargs"):
            yield from ((key, file) for file in function_files(key, value))


def function_files(key: str, value: Any) -> Iterator[Path]:
    """Yields the files that a function's setting names: code with what it imports from beside it, and what it reads."""
    for text in texts_of(value):
        if key.startswith("reward.kwargs") and os.path.isfile(read := os.path.expanduser(text)):
            yield Path(read).resolve()  # a list of words, a table of golds, a rubric
        if (code := _code(text)) is None:
            continue
        file, root = code
        yield file
        # What it imports from beside it belongs to it.
        yield from (other for other in files_imported(file, root) if other.parent == file.parent)


def texts_of(value: Any) -> Iterator[str]:
    """Yields every text in a setting, however deep it stands in lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from texts_of(entry)


def _code(text: str) -> tuple[Path, Path] | None:
    """Returns the file of "file.py:function", and of "module:function" if that is a module of the user's.

    Beside it stands the folder in which its top-level imports are looked for.
    """
    place = text.rpartition(":")[0]
    if place.endswith(".py"):
        file = Path(place).resolve()
        return (file, file.parent) if file.is_file() else None
    module = sys.modules.get(place)
    if module is None or module not in own_modules():
        return None
    file = Path(module.__file__ or "").resolve()
    return file, file.parents[place.count(".") + (file.name == "__init__.py")]


def _check_settings(cfg: RowsRun, before: Mapping[str, Any]) -> None:
    old, new = _flat(before), _flat(yaml.safe_load(to_yaml(cfg)))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    changed = [key for key in changed if not key.startswith(MAY_CHANGE)]
    if changed:
        key = changed[0]
        raise UserError(
            f"output_dir={cfg.output_dir} holds a run with other settings: {', '.join(changed)} ({key} was "
            f"{old.get(key)!r}, now {new.get(key)!r}); use another output_dir, or the settings in "
            f"{cfg.output_dir / CONFIG_FILE}"
        )


def _check_files(cfg: RowsRun, before: Mapping[str, str]) -> None:
    now = fingerprints(cfg)
    other = [name for name in before if name in now and now[name] != before[name]]
    gone, new = (before.keys() - now.keys(), now.keys() - before.keys())
    # What lies beside the user's code and is not in its imports is gone if it is not on the disk. A new file there
    # takes a change of the code to be read; in a model's folder it is read as it lies there.
    folders = [(key, file.parent) for key, file in _named_files(cfg)]
    gone = {n for n in gone if n.startswith(FOLDERS) or not any(_lies(n, *folder) for folder in folders)}
    new = {n for n in new if n.startswith(FOLDERS)}
    changed = [*other, *sorted(gone), *sorted(new)]
    if changed:
        key, _, file = changed[0].partition(" ")
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        if other:
            what = f"another {file}: the file that {key} names is not the one of its first start"
        elif gone:
            what = f"{file}, which {key} read at its first start and which is gone"
        else:
            what = f"no {file}: {key} has that file, which was not there at its first start"
        lists = "".join(
            f"; {word}: {', '.join(sorted(name.partition(' ')[2] for name in names))}"
            for word, names in (("gone", gone), ("new", new))
            if names and len(changed) > 1
        )
        # The journal of a job is of its first files, and its answers say nothing of others.
        new_one = f"; to go on with the new one all the same, remove {cfg.output_dir / INPUTS_FILE}"
        raise UserError(
            f"output_dir={cfg.output_dir} holds a run that began with {what}{more}{lists}; put it back, or use another "
            f"output_dir{'' if isinstance(cfg, DistillRun) else new_one}"
        )


def _lies(name: str, key: str, folder: Path) -> bool:
    """Whether a file of that name in the record still lies in a folder that the same key names."""
    recorded, _, file = name.partition(" ")
    return recorded == key and (folder / file).is_file()


def _read(file: Path, parse: Any) -> Mapping[str, Any]:
    try:
        found = parse(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file} cannot be read ({str(error).splitlines()[0]}); mend it, or use another output_dir"
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{file} holds no settings; mend it, or use another output_dir")
    return found
