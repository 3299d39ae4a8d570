"""The whole story: evaluate, fine-tune on demonstrations, evaluate, reinforce, evaluate.

python -m recipes.sft_then_grpo key=value ...      (or: rlkit run sft_then_grpo key=value ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.assemble import started
from rlkit.config import SftThenGrpoRun
from rlkit.loop import train
from rlkit.run.open import open_run
from rlkit.sft import finetune


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    opened = open_run("sft_then_grpo", SftThenGrpoRun, argv)
    if opened is None:
        return
    cfg, run = opened
    room, demonstrations, prompts = cfg.trainer.max_tokens, run.task.demonstrations, run.task.prompts
    with run, started(cfg, run) as parts:
        run.evaluate("before SFT", 0, parts)
        done = run.steps_done("sft", cfg.sft.steps)
        shown = finetune(parts.trainer, demonstrations, cfg.sft, max_tokens=room, seed=cfg.seed, start=done)
        run.follow("sft", cfg.sft.steps, shown, parts)

        run.begin_stage("grpo", parts)
        run.evaluate("after SFT", 0, parts)
        done = run.steps_done("grpo", cfg.algo.steps)
        learned = train(parts, prompts, cfg.algo, max_tokens=room, seed=cfg.seed, start=done)
        run.follow("grpo", cfg.algo.steps, learned, parts)
        run.evaluate("after GRPO", cfg.algo.steps, parts)
        run.export(parts)


if __name__ == "__main__":
    main()
