"""vLLM against transformers: log-probs, traces and samples agree after every weight sync; what breaks them is named."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from rlkit.engine.vllm import VllmEngine
from rlkit.parity import ParityError, check_parity, gate_sequences
from rlkit.types import Prompt, Sampling
from tests.hf_reference import VOCAB, HfTrainer, make_model, randomise, save_checkpoint

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
PROMPTS = [Prompt(id=f"p{i}", tokens=tuple(range(5 + i, 13 + 3 * i)), text="", meta={}) for i in range(8)]
SEQUENCES = gate_sequences(VOCAB, 6, 48, seed=0, prompts=[p.tokens for p in PROMPTS])


@pytest.fixture(scope="module")
def trainer() -> HfTrainer:
    return HfTrainer(make_model())


@pytest.fixture(scope="module")
def engine(trainer: HfTrainer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(trainer.model, folder)
    engine = VllmEngine(folder, max_model_len=128, kv_cache_gib=0.25, threads=1)
    yield engine
    engine.close()


@pytest.fixture
def synced(engine: VllmEngine, trainer: HfTrainer) -> VllmEngine:
    randomise(trainer.model, 0)
    engine.load(trainer.weights(), 1)
    return engine


def test_logprobs_and_blocks_equal_transformers_after_start(engine, trainer):
    assert check_parity(engine, trainer, SEQUENCES, TOLERANCE) > 0, "two implementations never agree to the last bit"
    ours, theirs = engine.trace(SEQUENCES[0]), trainer.trace(SEQUENCES[0])
    assert list(ours) == list(theirs)
    for name, ours_TD in ours.items():
        assert ours_TD.shape == (48, 64) and ours_TD.dtype == torch.float32
        torch.testing.assert_close(ours_TD, theirs[name], rtol=1e-4, atol=1e-4)
    hooks = engine._engine.apply_model(lambda model: sum(len(module._forward_hooks) for module in model.modules()))
    assert hooks == [0]


def test_parity_after_each_of_20_reloads(engine, trainer):
    stale = engine.logprobs(SEQUENCES)
    for version in range(1, 21):
        randomise(trainer.model, version)
        sent = [(name, tensor.clone()) for name, tensor in trainer.weights()]
        engine.load(iter(sent), version)
        for _, tensor in sent:
            tensor.zero_()  # the engine must own its copy: the trainer's next step writes in place
        assert check_parity(engine, trainer, SEQUENCES, TOLERANCE) < TOLERANCE
        fresh = engine.logprobs(SEQUENCES)
        assert fresh != stale
        stale = fresh


def test_reloading_the_same_weights_changes_no_bit(synced, trainer):
    before = synced.logprobs(SEQUENCES)
    synced.load(trainer.weights(), 2)
    assert synced.logprobs(SEQUENCES) == before


def test_the_routers_bias_arrives_bit_for_bit(synced, trainer):
    """It is fp32 in every engine; what the trainer's balancing added must not be rounded on the way."""

    def held(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: t.detach().clone() for name, t in model.named_parameters() if name.endswith("correction_bias")}

    sent = {name: tensor for name, tensor in trainer.weights() if name.endswith("correction_bias")}
    (found,) = synced._engine.apply_model(held)
    assert found.keys() == sent.keys() and len(sent) == 2
    for name, tensor in sent.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor)
        assert not torch.equal(tensor, tensor.bfloat16().float())


def test_sequences_of_one_and_two_tokens(synced, trainer):
    ours, theirs = synced.logprobs([(5,), (5, 6)]), trainer.logprobs([(5,), (5, 6)])
    assert ours[0] == theirs[0] == []
    assert ours[1] == pytest.approx(theirs[1], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.1.mlp.experts.5.down_proj.weight", "model.layers.1.mlp"),
        ("model.layers.2.mlp.gate.e_score_correction_bias", "model.layers.2.mlp"),
        ("model.layers.1.self_attn.kv_b_proj.weight", "model.layers.1.self_attn"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_weight_changed_in_transit_is_named(synced, trainer, name, block):
    def corrupted() -> Iterator[tuple[str, torch.Tensor]]:
        for sent, tensor in trainer.weights():
            yield sent, tensor.flip(0) if sent == name else tensor

    assert name in dict(trainer.weights())
    synced.load(corrupted(), 2)
    with pytest.raises(ParityError, match=rf"First block that differs: {block} "):
        check_parity(synced, trainer, SEQUENCES, TOLERANCE)


def test_experts_in_the_wrong_order_are_named(synced, trainer):
    swap = {"experts.2.": "experts.6.", "experts.6.": "experts.2."}

    def renamed(name: str) -> str:
        old = next((old for old in swap if old in name and "layers.2" in name), None)
        return name.replace(old, swap[old]) if old else name

    synced.load(((renamed(name), tensor) for name, tensor in trainer.weights()), 2)
    with pytest.raises(ParityError, match=r"First block that differs: model\.layers\.2\.mlp "):
        check_parity(synced, trainer, SEQUENCES, TOLERANCE)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
def test_sampled_logprobs_are_those_of_the_distribution_drawn_from(synced, trainer, temperature, top_p):
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=40, seed=5)
    for group in synced.generate(PROMPTS, 3, sampling):
        for rollout in group.rollouts:
            logprobs_NV = next_token_logprobs(trainer, group.prompt.tokens, rollout.tokens) / temperature
            logprobs_NV = logprobs_NV.log_softmax(-1)
            if top_p < 1:
                probs_NV, order_NV = logprobs_NV.exp().sort(-1, descending=True)
                dropped_NV = probs_NV.cumsum(-1) - probs_NV >= top_p
                logprobs_NV = logprobs_NV.masked_fill(dropped_NV.gather(1, order_NV.argsort(-1)), -math.inf)
                logprobs_NV = logprobs_NV.log_softmax(-1)
            expected_N = logprobs_NV.gather(1, torch.tensor(rollout.tokens)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(rollout.logprobs), expected_N, rtol=0, atol=TOLERANCE)


def test_temperature_0_takes_the_likeliest_token(synced, trainer):
    sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=40, seed=5)
    for group in synced.generate(PROMPTS, 1, sampling):
        tokens = group.rollouts[0].tokens
        logprobs_NV = next_token_logprobs(trainer, group.prompt.tokens, tokens)
        best_N, picked_N = logprobs_NV.max(-1).values, logprobs_NV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (best_N - picked_N).max() < TOLERANCE


def test_samples_follow_the_stated_distribution(synced, trainer):
    num = 4000
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=1, seed=11)
    (group,) = synced.generate(PROMPTS[:1], num, sampling)
    observed_V = torch.bincount(torch.tensor([r.tokens[0] for r in group.rollouts]), minlength=VOCAB)
    expected_V = num * next_token_logprobs(trainer, PROMPTS[0].tokens, (0,))[0].exp()
    rare_V = expected_V < 5  # Pearson's test needs five in each class; the rare ones make one class
    observed = torch.cat([observed_V[~rare_V], observed_V[rare_V].sum()[None]])
    expected = torch.cat([expected_V[~rare_V], expected_V[rare_V].sum()[None]])
    chi2, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


def next_token_logprobs(trainer: HfTrainer, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """log p of every token of the vocabulary at temperature 1, before each token of the completion: [N, V]."""
    with torch.no_grad():
        logits_TV = trainer.model(torch.tensor([[*prompt, *completion]])).logits[0]
    return logits_TV[len(prompt) - 1 : -1].log_softmax(-1)
