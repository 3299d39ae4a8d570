"""On-policy distillation: the order of its step with parts that only count, and that a real student learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from rlkit.algo import ReverseKlLoss, Schedule
from rlkit.config import OnPolicyConfig, SamplingConfig
from rlkit.engine.local import TorchEngine
from rlkit.model import DeepseekV3
from rlkit.on_policy import distill, distill_step, teacher_logprobs
from rlkit.parity import Agreement
from rlkit.parts import Parts
from rlkit.types import Prompt, Step, TaughtPack
from tests.test_loop import PROMPTS, CountingEngine, at_once, by_place, make
from tests.train.test_trainer import make_model, make_trainer, weights

CFG = OnPolicyConfig(
    steps=4,
    prompts_per_step=2,
    samples=4,
    aggregate="token",
    sampling=SamplingConfig(temperature=1.0, top_p=1.0, max_new_tokens=5),
    schedule=Schedule(lr=0.5, warmup_steps=0, kind="constant", final_ratio=1.0),
)


@dataclass
class CountingTeacher(CountingEngine):
    """Says -token / 10 of every token."""

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self.log.events.append(f"ask about {len(sequences)}")
        return [[-token / 10 for token in sequence[1:]] for sequence in sequences]


def test_a_step_samples_asks_learns_and_publishes_in_this_order() -> None:
    """Flat rewards, and a rollout without a verdict, change nothing of what is learned."""
    parts, log = make(lambda group: by_place(1.0, 1.0, None if group.prompt.id == "p1" else 1.0, 1.0)(group))
    done = distill_step(3, PROMPTS[:2], parts, CountingTeacher(log), CFG, max_tokens=64, seed=0)
    assert log.events == ["generate p0,p1", "ask about 8", "update lr=0.5", "load 1", "gate"]
    [batch] = log.batches
    assert batch.num_samples == 8 and batch.temperature == 1.0
    for pack in batch.packs:
        assert isinstance(pack, TaughtPack)
        trained_T = pack.weights_T != 0
        assert torch.allclose(pack.teacher_logprobs_T[trained_T], -pack.tokens_T[trained_T] / 10)
        assert int(trained_T.sum()) == 2 * (1 + 2 + 3 + 4)
    numbers = done.numbers
    assert (done.stage, done.step, done.weight_version) == ("on_policy", 3, 1)
    assert (numbers["accuracy"], numbers["masked"], numbers["groups"], numbers["lr"]) == (1.0, 1, 2, 0.5)
    assert {"sample_s", "teach_s", "train_s", "sync_s", "teach_tok_s", "parity"} <= numbers.keys()
    assert "flat_groups" not in numbers


def test_a_row_of_the_teacher_begins_with_the_first_sampled_token() -> None:
    parts, log = make(by_place(0.0, 0.0, 0.0, 0.0))
    distill_step(1, PROMPTS[:1], parts, CountingTeacher(log), CFG, max_tokens=64, seed=0)
    one_token = Prompt(id="short", tokens=(3,), text="", meta={})  # nothing comes before its only token
    for prompt in (PROMPTS[0], one_token):
        [group] = CountingEngine(log).generate([prompt], 4, CFG.sampling.seeded(0))
        [found] = teacher_logprobs(CountingTeacher(log), [group])  # type: ignore[list-item]
        assert found == [[-token / 10 for token in rollout.tokens] for rollout in group.rollouts]


def test_steps_draw_other_prompts_with_other_seeds_and_stages_others_still() -> None:
    def seeds(stage: str, start: int = 0) -> list[tuple[int, ...]]:
        parts, log = make(by_place(0.0, 0.0, 0.0, 0.0))
        found = []
        for _ in distill(parts, CountingTeacher(log), PROMPTS, CFG, max_tokens=64, seed=7, start=start, stage=stage):
            found.append(tuple(log.seeds))
            log.seeds.clear()
        return found

    first = seeds("on_policy")
    assert len(set(first)) == 4 and seeds("on_policy", start=2) == first[2:]
    assert not set(first) & set(seeds("second"))


def student_and_teacher() -> tuple[Parts, TorchEngine]:
    """A real student of the trainer's tests, and a teacher of the same shape with other weights."""
    trainer = make_trainer("torch", keep_reference=False)
    engine = TorchEngine(make_model(), 1, lambda tokens: " ".join(map(str, tokens)))
    teacher = TorchEngine(make_model(seed=1), 1, lambda tokens: "")
    agreed = Agreement(gap=0.0, mean=0.0, limit="")
    parts = Parts(engine=engine, trainer=trainer, reward=at_once(lambda g: by_place(*[0.0] * len(g.rollouts))(g)),
                  gate=lambda: agreed)  # fmt: skip
    return parts, teacher


LEARN = replace(
    CFG,
    steps=24,
    samples=16,
    prompts_per_step=4,
    sampling=replace(CFG.sampling, max_new_tokens=6),
    schedule=replace(CFG.schedule, lr=3e-3),
)


def learn(parts: Parts, teacher: TorchEngine, start: int = 0, until: int = 24) -> list[Step]:
    found = []
    for done in distill(parts, teacher, PROMPTS, LEARN, max_tokens=512, seed=0, start=start):
        found.append(done)
        if done.step == until:
            break
    return found


@torch.no_grad()
def exact_kl(student: DeepseekV3, teacher: DeepseekV3) -> float:
    """KL(student || teacher) after every prompt, over the whole vocabulary, as torch computes it."""
    found = []
    for prompt in PROMPTS:
        tokens_T = torch.tensor(prompt.tokens)
        logits = [(m.hidden(tokens_T, [len(tokens_T)])[-1] @ m.lm_head.weight.T).double() for m in (student, teacher)]
        found.append(float(kl_divergence(Categorical(logits=logits[0]), Categorical(logits=logits[1]))))
    return sum(found) / len(found)


@pytest.mark.slow
def test_a_real_student_comes_closer_to_its_teacher() -> None:
    """What the steps measure falls, and so does the exact divergence, which no step has looked at."""
    parts, teacher = student_and_teacher()
    model = parts.trainer.model  # type: ignore[attr-defined]
    before = exact_kl(model, teacher.model)  # type: ignore[arg-type]
    measured = [done.numbers["reverse_kl"] for done in learn(parts, teacher)]
    assert exact_kl(model, teacher.model) < 0.5 * before  # type: ignore[arg-type]
    assert sum(measured[-3:]) < 0.6 * sum(measured[:3])
    assert all(done.numbers["logprob_gap"] < 1e-4 for done in learn(*student_and_teacher(), until=3))


def test_a_stage_that_continues_equals_one_that_was_not_interrupted() -> None:
    whole, halves = student_and_teacher(), student_and_teacher()
    learn(*whole, until=5)
    learn(*halves, until=2)
    assert [done.step for done in learn(*halves, start=2, until=5)] == [3, 4, 5]
    found = weights(halves[0].trainer)  # type: ignore[arg-type]
    for name, tensor in weights(whole[0].trainer).items():  # type: ignore[arg-type]
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["deepspeed", "torch"])
def test_the_first_step_measures_the_divergence_of_its_own_tokens(kind: str) -> None:
    """In float64, from log-probs that engine and teacher say."""
    parts, teacher = student_and_teacher()
    parts = replace(parts, trainer=make_trainer(kind, keep_reference=False))
    asked: list[Sequence[Sequence[int]]] = []

    class Asked(TorchEngine):
        def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
            asked.append(sequences)
            return super().logprobs(sequences)

    watched = Asked(make_model(seed=1), 1, lambda tokens: "")
    [done] = learn(parts, watched, until=1)
    student = TorchEngine(make_model(), 1, lambda tokens: "")
    gaps = []
    for sequence, own, theirs in zip(asked[0], *(m.logprobs(asked[0]) for m in (student, teacher)), strict=True):
        prompt = next(len(p.tokens) for p in PROMPTS if p.tokens == tuple(sequence[: len(p.tokens)]))
        gaps += [p - q for p, q in zip(own[prompt - 1 :], theirs[prompt - 1 :], strict=True)]
    assert done.numbers["reverse_kl"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert done.numbers["loss"] == pytest.approx(sum(gap * gap for gap in gaps) / 2 / len(gaps), rel=1e-5)
    assert repr(ReverseKlLoss()) == "ReverseKlLoss()", "how a skipped batch is told"
