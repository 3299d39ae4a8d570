"""The in-process engine: what it samples, with which probabilities, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import DeepseekV3ForCausalLM, GenerationConfig

from rlkit.build import build_engine
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.engine.base import Engine, completion_text, rollout_seed
from rlkit.engine.local import TorchEngine, draw
from rlkit.model import DeepseekV3
from rlkit.model.hf import HfModel
from rlkit.model.load import KINDS
from rlkit.types import Group, Prompt, Sampling
from tests.hf_folders import make, save
from tests.model.tiny import BASE, seeded

EOS = 1
CONFIG = replace(BASE, q_lora_rank=24, n_group=2, vocab_size=24)
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12, seed=7)


def spell(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def prompt(*tokens: int) -> Prompt:
    return Prompt(id=f"test/{spell(tokens)}", tokens=tokens, text=spell(tokens), meta={})


PROMPTS = [prompt(3, 4, 5), prompt(7), prompt(9, 9, 2, 6, 5, 3, 5)]


def an_engine(model: DeepseekV3 | None = None, max_batch: int = 256) -> TorchEngine:
    engine: Engine = TorchEngine(model or seeded(CONFIG), EOS, spell, max_batch)
    assert isinstance(engine, TorchEngine)
    return engine


def drawn(engine: TorchEngine, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[Group]:
    """Groups in the order of the prompts; they come as they are finished."""
    groups = {group.prompt.id: group for group in engine.generate(prompts, n, sampling)}
    return [groups[prompt.id] for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("max_batch", [256, 2])
def test_greedy_equals_transformers_generate(max_batch: int, tmp_path: Path) -> None:
    model = seeded(CONFIG)
    model.save_checkpoint(tmp_path, dtype="fp32")
    reference = DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    groups = drawn(an_engine(model, max_batch), PROMPTS, 1, replace(SAMPLING, temperature=0.0))
    for asked, group in zip(PROMPTS, groups, strict=True):
        ids = torch.tensor([asked.tokens])
        options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": 0}
        text = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert group.prompt is asked
        assert list(group.rollouts[0].tokens) == text[0, len(asked.tokens) :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_reported_logprobs_are_those_of_a_full_forward_pass(temperature: float) -> None:
    model = seeded(CONFIG)
    for group in drawn(an_engine(model), PROMPTS, 9, replace(SAMPLING, temperature=temperature)):
        for rollout in group.rollouts:
            tokens = torch.tensor([*group.prompt.tokens, *rollout.tokens])
            with torch.no_grad():
                table = (model(tokens)[:-1] / temperature).log_softmax(-1)
            expected = table.gather(1, tokens[1:, None])[len(group.prompt.tokens) - 1 :, 0]
            assert_close(torch.tensor(rollout.logprobs), expected, atol=2e-5, rtol=0)


def test_logprobs_and_trace_are_the_models() -> None:
    model = seeded(CONFIG)
    engine = an_engine(model, max_batch=2)
    sequences = [[3, 4, 5, 6], [8], [2, 2], [*range(20)]]
    for sequence, found in zip(sequences, engine.logprobs(sequences), strict=True):
        tokens = torch.tensor(sequence)
        expected = model(tokens).detach().log_softmax(-1)[:-1].gather(1, tokens[1:, None]).flatten()
        assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)
    assert_close(engine.trace([3, 4])["model.norm"], model.hidden(torch.tensor([3, 4])).detach())


def test_rollouts_end_at_the_end_token_or_at_the_limit() -> None:
    model = seeded(CONFIG)
    groups = drawn(an_engine(model), PROMPTS, 40, SAMPLING)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    reasons = {rollout.finish_reason for rollout in rollouts}
    assert reasons == {"stop", "length"}, "the seed must give both"
    for rollout in rollouts:
        stopped = rollout.finish_reason == "stop"
        assert stopped == (rollout.tokens[-1] == EOS)
        assert EOS not in rollout.tokens[:-1] and len(rollout.logprobs) == len(rollout.tokens)
        assert rollout.text == spell(rollout.tokens[:-1] if stopped else rollout.tokens)
        assert stopped or len(rollout.tokens) == 12


@pytest.mark.slow
def test_a_rollout_does_not_depend_on_its_batch() -> None:
    """Alone, in small waves, among many, and beside samples that stop early (so that the batch is compacted)."""
    together = drawn(an_engine(), PROMPTS, 10, SAMPLING)
    waves = drawn(an_engine(max_batch=7), PROMPTS, 10, SAMPLING)
    fewer = drawn(an_engine(max_batch=3), PROMPTS[::-1], 2, SAMPLING)[::-1]
    alone = [drawn(an_engine(), [asked], 10, SAMPLING)[0] for asked in PROMPTS]
    for i, group in enumerate(together):
        for other in (waves[i], alone[i], fewer[i]):
            for a, b in zip(group.rollouts, other.rollouts, strict=False):
                assert (a.tokens, a.seed, a.finish_reason) == (b.tokens, b.seed, b.finish_reason)
                assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5, rtol=0)
    assert {len(rollout.tokens) for group in together for rollout in group.rollouts} > {12}, "some stop early"


def test_a_group_comes_while_others_are_written() -> None:
    """In the order in which their last rollouts end, whatever the wave they are in."""
    for max_batch in (256, 10):
        engine = an_engine(max_batch=max_batch)
        seen, lengths = [], []
        for group in engine.generate(PROMPTS, 10, SAMPLING):
            seen.append(engine.finished())
            lengths.append(max(len(rollout.tokens) for rollout in group.rollouts))
            assert seen[-1] >= 10 * len(seen)
        assert len(seen) == len(PROMPTS)
        if max_batch == 10:
            assert seen == [10, 20, 30], "a wave holds one group, so each comes before the next is begun"
        else:
            assert lengths == sorted(lengths)


def test_a_call_that_is_left_early_changes_nothing() -> None:
    engine = an_engine()
    next(engine.generate(PROMPTS, 4, SAMPLING))
    assert drawn(engine, PROMPTS, 4, SAMPLING) == drawn(an_engine(), PROMPTS, 4, SAMPLING)


def test_seeds_follow_the_prompt_and_its_place() -> None:
    group = drawn(an_engine(), PROMPTS, 4, SAMPLING)[1]
    assert [rollout.seed for rollout in group.rollouts] == [rollout_seed(7, PROMPTS[1].id, i) for i in range(4)]
    assert len({rollout.tokens for rollout in group.rollouts}) > 1
    again = drawn(an_engine(), PROMPTS, 4, replace(SAMPLING, seed=8))[1]
    assert [rollout.tokens for rollout in again.rollouts] != [rollout.tokens for rollout in group.rollouts]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_sampled_frequencies_follow_the_softmax(temperature: float, top_p: float) -> None:
    """Chi-square over 4000 first tokens; with 23 degrees of freedom or fewer, 49.7 is exceeded once in 1000 seeds."""
    model = seeded(CONFIG)
    asked, draws = prompt(3, 4, 5), 4000
    sampling = replace(SAMPLING, temperature=temperature, top_p=top_p, max_new_tokens=1)
    rollouts = drawn(an_engine(model, max_batch=1000), [asked], draws, sampling)[0].rollouts
    with torch.no_grad():
        probs = (model(torch.tensor(asked.tokens))[-1] / temperature).softmax(-1).tolist()
    nucleus, mass = set(), 0.0
    for token in sorted(range(24), key=lambda v: -probs[v]):
        if mass < top_p:
            nucleus.add(token)
            mass += probs[token]
    assert (len(nucleus) < 24) == (top_p < 1)
    counts = torch.bincount(torch.tensor([rollout.tokens[0] for rollout in rollouts]), minlength=24).tolist()
    assert all(count == 0 for token, count in enumerate(counts) if token not in nucleus)
    expected = {token: draws * probs[token] / mass for token in nucleus}
    assert sum((counts[v] - e) ** 2 / e for v, e in expected.items()) < 49.7
    for rollout in rollouts[:50]:
        exact = torch.tensor(probs[rollout.tokens[0]] / mass).log()
        assert_close(torch.tensor(rollout.logprobs[0]), exact, atol=1e-5, rtol=0)


def test_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    """p = (.2, 0, .5, .3): u below .2 is token 0, below .7 token 2, else token 3; token 1 never comes."""
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log()
    uniforms = torch.tensor([0.0, 0.19, 0.2001, 0.69, 0.7001, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = draw(logits.expand(6, 4), uniforms, SAMPLING)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert_close(logprobs, logits[tokens])
    greedy, logprobs = draw(logits.expand(6, 4), uniforms, replace(SAMPLING, temperature=0.0))
    assert greedy.tolist() == [2] * 6
    assert_close(logprobs, torch.full((6,), 0.5).log())
    nucleus, logprobs = draw(logits.expand(6, 4), uniforms, replace(SAMPLING, top_p=0.6))
    assert nucleus.tolist() == [2, 2, 2, 3, 3, 3]
    assert_close(logprobs, torch.tensor([5 / 8] * 3 + [3 / 8] * 3).log())


def test_load_replaces_the_engines_own_weights() -> None:
    model = seeded(CONFIG)
    engine = an_engine(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    first = drawn(engine, PROMPTS, 2, SAMPLING)
    assert first == drawn(an_engine(), PROMPTS, 2, SAMPLING), "the engine must not share the trainer's weights"
    other = seeded(CONFIG, seed=5)
    engine.load(other.checkpoint_weights(), version=3)
    found = drawn(engine, PROMPTS, 2, SAMPLING)
    assert {rollout.weight_version for group in found for rollout in group.rollouts} == {3}
    expected = drawn(an_engine(other), PROMPTS, 2, SAMPLING)
    tokens = [[rollout.tokens for group in groups for rollout in group.rollouts] for groups in (found, expected, first)]
    assert tokens[0] == tokens[1] != tokens[2]
    with pytest.raises(ValueError, match="missing"):
        engine.load([], version=4)


@pytest.mark.parametrize(("max_batch", "runs"), [(256, [3]), (8, [2, 1]), (5, [1, 1, 1])])
def test_each_prompt_is_run_once(max_batch: int, runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(model: DeepseekV3, prompts: Sequence[Sequence[int]]) -> object:
        seen.append(len(prompts))
        return original(model, prompts)

    original = DeepseekV3.prefill
    monkeypatch.setattr(DeepseekV3, "prefill", counted)
    drawn(an_engine(max_batch=max_batch), PROMPTS, 4, SAMPLING)
    assert seen == runs


def test_refuses_a_batch_of_none() -> None:
    with pytest.raises(ValueError, match="max_batch=0: give at least 1"):
        an_engine(max_batch=0)


@pytest.mark.slow
def test_a_model_of_transformers_takes_the_tokens_that_its_own_generate_takes(tmp_path: Path) -> None:
    """Greedy, against transformers' generate, one prompt at a time; prompts of different lengths share a batch here."""
    reference = make("llama")
    engine = TorchEngine(HfModel.from_checkpoint(save(reference, tmp_path)), EOS, spell)
    sampling = replace(SAMPLING, temperature=0.0)
    for asked, group in zip(PROMPTS, drawn(engine, PROMPTS, 2, sampling), strict=True):
        ids = torch.tensor([asked.tokens])
        mask = torch.ones_like(ids)
        made = reference.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=2)
        for rollout in group.rollouts:
            assert list(rollout.tokens) == made[0, len(asked.tokens) :].tolist()


def test_log_probs_and_seeds_hold_for_a_model_of_transformers(tmp_path: Path) -> None:
    model = HfModel.from_checkpoint(save(make("qwen2"), tmp_path))
    whole, halves = (TorchEngine(model, EOS, spell, max_batch) for max_batch in (256, 2))
    for one, two in zip(drawn(whole, PROMPTS, 3, SAMPLING), drawn(halves, PROMPTS, 3, SAMPLING), strict=True):
        assert [rollout.tokens for rollout in one.rollouts] == [rollout.tokens for rollout in two.rollouts]
        assert len({rollout.tokens for rollout in one.rollouts}) > 1
        for rollout in one.rollouts:
            [scored] = whole.logprobs([(*one.prompt.tokens, *rollout.tokens)])
            assert rollout.logprobs == pytest.approx(scored[len(one.prompt.tokens) - 1 :], abs=1e-4)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ((3, 4, 1), "3 4"),
        ((3, 4, 9), "3 4"),
        ((3, 4), "3 4"),
        ((9,), ""),
        ((), ""),
        ((3, 9, 1), "3 9"),
        ((9, 4), "9 4"),
    ],
)
def test_the_text_of_a_completion_stands_before_its_end_token(tokens: tuple[int, ...], text: str) -> None:
    assert completion_text(tokens, {EOS, 9}, spell) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_of_a_run_stops_at_the_ends_of_both_files(kind: str, tmp_path: Path) -> None:
    """The torch engine knew one end of our own models, and both of vLLM's."""
    folder = save(make("deepseek"), tmp_path)
    GenerationConfig(eos_token_id=[EOS, 7]).save_pretrained(folder)
    engine = build_engine(load_config("grpo", GrpoRun, ["engine=torch"]).engine, folder, kind)
    assert isinstance(engine, TorchEngine) and engine.end_tokens == {EOS, 7}


def test_any_of_several_end_tokens_ends_a_completion() -> None:
    engine = TorchEngine(seeded(CONFIG), {EOS, 3, 9}, spell)
    rollouts = [rollout for group in engine.generate(PROMPTS, 16, SAMPLING) for rollout in group.rollouts]
    ended = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert {rollout.tokens[-1] for rollout in ended} == {EOS, 3, 9}
    assert all(rollout.text == spell(rollout.tokens[:-1]) for rollout in ended)
    assert not any({EOS, 3, 9} & {*rollout.tokens[:-1]} for rollout in rollouts)
