"""The checkpoint that engines load: the trainer's own, or the same weights in the form that the engine computes in.

vLLM reads from a checkpoint whether it computes in FP8, and packs its weights once, when it starts: what a sync sends
later must have the same form.
"""

from __future__ import annotations

from pathlib import Path

from rlkit.config import EngineRun
from rlkit.model.files.convert import convert_checkpoint
from rlkit.run.prepare import INITIAL


def served_checkpoint(cfg: EngineRun, checkpoint: Path) -> Path:
    """Returns a folder in block FP8 where `engine.dtype=fp8`, made beside the run's files on the first call.

    A run starts from high precision, so that the trainer has its own. Which scales the codes have here does not matter:
    the first sync replaces every weight before anything is sampled.
    """
    if cfg.engine.dtype != "fp8":
        return checkpoint
    folder = cfg.output_dir / f"{INITIAL}_fp8"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_checkpoint(checkpoint, folder, "fp8_weights")
    return folder.absolute()
