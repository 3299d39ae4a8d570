"""One rank of `test_ranks.py`: takes DeepSpeed steps, each from new, on its share of a batch; writes what came of them.

The gradient that was reduced, the load of the experts, and the router's biases of every rank.

python -m tests.train.one_rank STORE RANK WORLD_SIZE OUT
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from deepspeed.utils import safe_get_full_optimizer_state
from torch import distributed

from rlkit.algo import NO_MTP, GrpoLoss, MtpTerm, SftLoss, shard
from rlkit.model import DeepseekV3
from rlkit.train.steppers.deepspeed import DeepSpeedStepper, join_ranks
from rlkit.train.trainer import ModelTrainer
from tests.model.tiny import seeded
from tests.train.test_ranks import CASES
from tests.train.test_trainer import ARCHITECTURE, CFG, make_model, rollouts


def bias_of(model: DeepseekV3) -> torch.Tensor:
    return torch.stack([buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")])


def step(rank: int, world_size: int, zero_stage: int, kind: str) -> dict[str, Any]:
    model = seeded(replace(ARCHITECTURE, num_nextn_predict_layers=2)) if kind.startswith("mtp") else make_model()
    cfg = replace(CFG, kind="deepspeed", num_ranks=world_size, zero_stage=zero_stage, grad_clip=1e9, weight_decay=0.0)
    trainer = ModelTrainer(
        model, DeepSpeedStepper(model, cfg), keep_reference=True, bias_update_speed=0.01, balance_coef=0.1
    )
    [batch] = rollouts(max_tokens=40)
    if kind.endswith("few"):  # fewer samples than ranks: one rank has nothing to do but must not be waited for
        first = batch.packs[0]
        size = first.lengths[0]
        names = ("tokens_T", "weights_T", "advantages_T", "old_logprobs_T")
        only = replace(first, lengths=(size,), **{name: getattr(first, name)[:size] for name in names})
        batch = replace(batch, packs=(only,), num_samples=1)
    before = bias_of(model).clone()
    share = shard(batch, world_size)[rank]
    mtp = MtpTerm(weight=0.3, detached=False) if kind.startswith("mtp") else NO_MTP
    stats = trainer.update(share, SftLoss() if mtp.weight else GrpoLoss(kl_coef=0.05), 1e-3, mtp)
    # DeepSpeed has linked the moments after the step of its first group, when the second, of MTP, had none yet.
    trainer.stepper.zero._hp_optimizer_states_linked = False  # type: ignore[attr-defined]
    trainer.stepper.zero._lazy_init_hp_params_optimizer_state()  # type: ignore[attr-defined]
    # After one step of Adam the first moment is (1 - beta1) times the gradient of the whole batch.
    moments = {
        name: safe_get_full_optimizer_state(parameter, "exp_avg").clone()
        for name, parameter in model.named_parameters()
    }
    bias = bias_of(model)
    biases = [torch.empty_like(bias) for _ in range(world_size)]
    distributed.all_gather(biases, bias)
    return {"numbers": dict(stats), "moments": moments, "biases": biases, "before": before}


def main(store: str, rank: int, world_size: int, out: str) -> None:
    torch.set_num_threads(1)
    join_ranks(distributed.FileStore(store, world_size), rank, world_size)
    seen = {case: step(rank, world_size, *case) for case in CASES}
    if rank == 0:
        torch.save(seen, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    store, rank, world_size, out = sys.argv[1:]
    main(store, int(rank), int(world_size), out)
