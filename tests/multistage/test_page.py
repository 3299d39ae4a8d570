"""One curve over the steps of all stages."""

from __future__ import annotations

import json
from pathlib import Path

from rlkit.multistage.page import curves
from rlkit.multistage.stage import Made


def stage(folder: Path, *lines: dict[str, object]) -> Made:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"elapsed_s": 1.0} | line) + "\n" for line in lines))
    return Made(folder=folder)


def test_steps_of_stages_are_laid_end_to_end(tmp_path: Path) -> None:
    first = stage(
        tmp_path / "1",
        {"stage": "sft", "step": 1, "loss": 2.0},
        {"stage": "sft", "step": 2, "loss": 1.0},
        {"stage": "eval", "step": 2, "name": "after SFT", "accuracy": 0.25},
        {"stage": "grpo", "step": 1, "accuracy": 0.5},  # a stage within the run counts anew
    )
    second = stage(
        tmp_path / "2",
        {"stage": "eval", "step": 0, "name": "before GRPO", "accuracy": 0.5},
        {"stage": "grpo", "step": 1, "accuracy": 0.75},
    )
    points, starts = curves([first, second])
    assert starts == [0, 3]
    assert points == {"accuracy": [(3.0, 0.5), (4.0, 0.75)], "eval": [(2.0, 0.25), (3.0, 0.5)]}
