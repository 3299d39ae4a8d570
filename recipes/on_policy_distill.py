"""On-policy distillation: a student writes, and learns from what a teacher thinks of every token.

python -m recipes.on_policy_distill model.path=STUDENT teacher.path=TEACHER key=value ...
(or: rlkit run on_policy_distill ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.assemble import started, teaching
from rlkit.config import OnPolicyDistillRun
from rlkit.on_policy import ON_POLICY, distill
from rlkit.run.open import open_run


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    opened = open_run("on_policy_distill", OnPolicyDistillRun, argv)
    if opened is None:
        return
    cfg, run = opened
    with run, teaching(cfg, run) as teacher, started(cfg, run) as parts:
        run.evaluate("before distillation", 0, parts)
        steps = distill(
            parts,
            teacher,
            run.task.prompts,
            cfg.on_policy,
            max_tokens=cfg.trainer.max_tokens,
            seed=cfg.seed,
            start=run.steps_done(ON_POLICY, cfg.on_policy.steps),
        )
        run.follow(ON_POLICY, cfg.on_policy.steps, steps, parts)
        run.evaluate("after distillation", cfg.on_policy.steps, parts)
        run.export(parts)


if __name__ == "__main__":
    main()
