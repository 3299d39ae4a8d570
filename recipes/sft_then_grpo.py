"""The whole story: evaluate, fine-tune on demonstrations, evaluate, reinforce, evaluate.

python -m recipes.sft_then_grpo key=value ...      (or: rlkit run sft_then_grpo key=value ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.cluster.start import start
from rlkit.config import SftThenGrpoRun
from rlkit.loop import train
from rlkit.run.open import open_run
from rlkit.sft import finetune


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with the command line's overrides."""
    opened = open_run("sft_then_grpo", SftThenGrpoRun, argv)
    if opened is None:
        return
    cfg, run = opened
    with run, start(cfg, run) as parts:
        run.evaluate("before SFT", 0, parts)
        done = run.position.steps_done("sft", cfg.sft.steps)
        with run.bar("SFT", cfg.sft.steps) as bar:
            for step, stats in finetune(
                parts.trainer, run.task.demonstrations, cfg.sft, max_tokens=parts.max_tokens, seed=cfg.seed, start=done
            ):
                run.record(step, cfg.sft.steps, stats, parts)
                bar.set(step)
        run.begin_grpo(parts)
        run.evaluate("after SFT", 0, parts)
        done = run.position.steps_done("grpo", cfg.algo.steps)
        with run.bar("GRPO", cfg.algo.steps) as bar:
            for step, stats in train(parts, run.task.prompts, cfg.algo, seed=cfg.seed, start=done):
                run.record(step, cfg.algo.steps, stats, parts)
                bar.set(step)
        run.evaluate("after GRPO", cfg.algo.steps, parts)
        run.export(parts)


if __name__ == "__main__":
    main()
