"""What the machine refuses, found before anything starts: folders, disk, shared memory, Ray's own files.

Each check does in small what the run will do, and leaves nothing behind. What is not covered: activations, other
machines of a cluster, a disk that fills up later.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import torch

from rlkit.config import BaseRun, EngineRun, LearningRun, OnPolicyDistillRun, TrainingRun
from rlkit.config.placement import gpu_share
from rlkit.errors import UserError
from rlkit.model.architecture import Architecture
from rlkit.model.load import read_architecture
from rlkit.plan.hardware import main_memory
from rlkit.plan.here import engine_here, trainer_here
from rlkit.plan.recipes import planned_as

GIB = 2**30
SHM = Path("/dev/shm")
SHM_REQUIRED_BYTES = 10**10
"""A larger object store must lie in /dev/shm; Ray puts a smaller one that does not fit there into its folder."""
TRY_BYTES = 2**16
RAY_BYTES = 2**26
"""Ray's logs and sockets: without this much room its first start fails."""
SOCKET_BYTES = 107
"""The longest name of a socket that Linux takes."""
SESSION = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Where Ray puts its longest-named socket, below TMPDIR; the end of the session's name is a process id."""


def check_machine(cfg: LearningRun, *, weights: int, trained: int, orthogonal: int = 0) -> None:
    """Raises UserError, with what to change, for a run that this machine would end in its middle.

    `weights` and `trained` are numbers of parameters: of the whole model, and of those with an optimiser; of these
    `orthogonal` are trained by Muon.
    """
    check_place(cfg, weights=weights)
    if isinstance(cfg, TrainingRun):
        check_engine_machine(cfg)
    _check_disk(cfg, weights, trained, orthogonal)
    if cfg.logging.wandb_project and find_spec("wandb") is None:
        raise UserError(
            f"logging.wandb_project={cfg.logging.wandb_project!r}: the package wandb is not installed; install it, or "
            "leave the key empty"
        )


def check_engine_machine(cfg: EngineRun) -> None:
    """Raises UserError, with what to change, for engines that this machine would not have."""
    if cfg.engine.kind == "vllm" and cfg.engine.memory > 1 and torch.cuda.is_available():
        raise UserError(
            f"engine.memory={cfg.engine.memory:g}: on a GPU it is the share of the device's memory that vLLM takes; "
            "give a number up to 1, as 0.5"
        )


def check_place(cfg: BaseRun, *, weights: int) -> None:
    """Raises UserError, with what to change, for a folder or a place that cannot take the run.

    `weights` is the number of the model's parameters.
    """
    check_folder("output_dir", cfg.output_dir, "set another output_dir")
    if cfg.cluster.kind == "ray" and not cfg.cluster.address:
        gpu_share(torch.cuda.device_count(), cfg.demand, share=cfg.cluster.share_gpus)
        _check_ray_folders()
        files = sum(file.stat().st_size for file in Path(cfg.model.path).glob("*.safetensors")) if cfg.model.path else 0
        _check_shared_memory(cfg.cluster.object_store_bytes(files or 4 * weights))


def check_memory(cfg: LearningRun, architecture: Architecture) -> None:
    """Raises UserError where weights, gradients and optimiser alone are more than this machine has.

    Parts that a running cluster spreads over its machines are not looked at, nor are activations: what is refused here
    would fail for certain. `rlkit plan` predicts the rest.
    """
    if cfg.cluster.address:
        return
    trainer, ranks = trainer_here(cfg, architecture), cfg.trainer.num_ranks
    keys = f"trainer.dtype={cfg.trainer.dtype}, trainer.zero_stage={cfg.trainer.zero_stage}"
    engines, engine, sampler = 0, 0, ""
    if isinstance(cfg, TrainingRun):
        engines, engine = cfg.engine.num_engines, engine_here(cfg, architecture).weights
        sampler = f"engine.dtype={cfg.engine.dtype}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0).total_memory
        _refuse_bytes(cfg, f"a trainer rank ({keys}) needs", trainer.states, "its GPU", device)
        if isinstance(cfg, TrainingRun):
            sampler += f", engine.tensor_parallel={cfg.engine.tensor_parallel}"
            _refuse_bytes(cfg, f"an engine ({sampler}) needs", engine // cfg.engine.tensor_parallel, "each GPU", device)
        if isinstance(cfg, OnPolicyDistillRun):
            each = _teacher_bytes(cfg) // cfg.teacher.tensor_parallel
            _refuse_bytes(cfg, f"the teacher (teacher.dtype={cfg.teacher.dtype}) needs", each, "its GPU", device)
        return
    what = f"trainer.num_ranks={ranks} ({keys})"
    what += f" and engine.num_engines={engines} ({sampler}) need" if engines else " needs"
    needed = ranks * trainer.resting + engines * engine
    if isinstance(cfg, OnPolicyDistillRun):
        what, needed = f"teacher.path={cfg.teacher.path}, {what}", needed + _teacher_bytes(cfg)
    _refuse_bytes(cfg, what, needed, "this machine", main_memory())


def _teacher_bytes(cfg: OnPolicyDistillRun) -> int:
    """Returns the bytes of the teacher's weights in its engine."""
    teacher = cfg.teacher_run
    return engine_here(teacher, read_architecture(Path(cfg.teacher.path), teacher.model.kind)).weights


def _refuse_bytes(cfg: LearningRun, what: str, needed: int, where: str, there: int) -> None:
    if needed > there:
        known = planned_as(cfg)
        of = "the same settings" if known == cfg.recipe else f"the settings of {cfg.recipe}"
        plan = f"; 'rlkit plan {known}' with {of} says what fits where" if known else ""
        raise UserError(
            f"{what} {_gib(needed)} for weights, gradients, optimiser and reference, and {where} has {_gib(there)}; "
            f"use a smaller model, trainer.lora, a larger machine or a running cluster (cluster.address){plan}"
        )


def check_folder(name: str, folder: Path, fix: str) -> None:
    """Makes the folder with all above it, writes a file that has no name, and takes away what it made."""
    made: list[Path] = []
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"\0" * TRY_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: a name that holds a zero byte
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        what = "is a file, not a folder" if _is_file(folder) else f"cannot be written ({why})"
        raise UserError(f"{name}={folder} {what}; {fix}") from error
    finally:
        for place in made:
            with suppress(OSError, ValueError):
                place.rmdir()


def _check_disk(cfg: LearningRun, weights: int, trained: int, orthogonal: int) -> None:
    """Compares the free bytes with the least that the run will write: a checkpoint, and the model at its end.

    A checkpoint has the weight and the moments in fp32: two with AdamW, one with Muon.
    """
    size = 4 if cfg.trainer.dtype == "fp32" else 2
    needed = weights * size + trained * 12 - orthogonal * 4 + (4 * trained if cfg.needs_reference else 0)
    if not cfg.model.path and not (cfg.output_dir / "initial").exists():
        needed += 4 * weights
    if (cfg.output_dir / "model").exists():  # complete: nothing is left to write but the report
        needed = 0
    free = _free(cfg.output_dir)
    if free < needed:
        raise UserError(
            f"output_dir={cfg.output_dir}: {_gib(free)} are free on its disk, and the run writes at least "
            f"{_gib(needed)} there, a checkpoint and the model; free some, or set another output_dir"
        )


def _check_ray_folders() -> None:
    """Ray keeps its sockets and logs below TMPDIR, and a token, which its first start makes, in the home folder."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "TMPDIR")
    place = os.environ.get(name, "/tmp")
    longest = len(os.fsencode(f"{place}/{SESSION}"))
    if longest > SOCKET_BYTES:
        raise UserError(
            f"{name}={place} is too long a name: Ray's sockets lie below it, and theirs would have {longest} bytes "
            f"where Linux takes {SOCKET_BYTES}; start the run with a shorter one, as {name}=/tmp, or use cluster=local"
        )
    check_folder(name, Path(place) / "ray", f"start the run with another one, as {name}=/tmp, or use cluster=local")
    free = _free(Path(place))
    if free < RAY_BYTES:
        raise UserError(
            f"{name}={place}: {_gib(free)} are free on its disk, and Ray writes its logs there; free some, or start "
            f"the run with another {name}"
        )
    token = Path.home() / ".ray" / "auth_token"
    if not token.exists() and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        fix = "Ray keeps a token there; start the run with another home folder, as HOME=/tmp/home, or use cluster=local"
        check_folder("HOME", token.parent, fix)


def _check_shared_memory(needed: int) -> None:
    """Ray's object store lies in shared memory; where that is too small, a small one may lie in Ray's folder."""
    memory = main_memory()
    if needed > memory:
        raise UserError(
            f"the model is too large for this machine: Ray's object store, which holds its weights twice, would take "
            f"{_gib(needed)} of {_gib(memory)} of memory; use a smaller model, a larger machine, or a running cluster "
            "(cluster.address)"
        )
    free = _free(SHM) if SHM.exists() else 0
    if free >= needed or "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE" in os.environ:
        return
    fix = f"make it larger (docker run --shm-size={needed // GIB + 1}g, or mount -o remount,size=... {SHM})"
    if needed > SHM_REQUIRED_BYTES:
        raise UserError(f"{SHM}: {_gib(free)} are free, and Ray's object store takes {_gib(needed)}; {fix}")
    place = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    if _free(Path(place)) < needed + RAY_BYTES:
        raise UserError(
            f"{SHM} and {place}: neither has {_gib(needed)} free for Ray's object store; {fix}, or start the run with "
            "another TMPDIR"
        )


def _free(folder: Path) -> int:
    """Returns the free bytes on the disk of a folder, which may not be there yet."""
    folder = folder.absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _gib(number: int) -> str:
    return f"{number / GIB:.3g} GiB"
