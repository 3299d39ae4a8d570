"""vLLM on a checkpoint with multi-token prediction: the main model passes the modules by, or drafts with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from rlkit.engine.local import TorchEngine
from rlkit.engine.vllm import VllmEngine
from rlkit.engine.vllm import engine as vllm_engine
from rlkit.model import DeepseekV3
from rlkit.parity import ParityError, check_parity, gate_sequences
from rlkit.parity.fp8 import check_products
from rlkit.types import Group, Prompt, Sampling
from tests.model.tiny import BASE, seeded

pytestmark = pytest.mark.slow
# Tests with an engine of their own come first: closing it ends vLLM's groups for any other in this process.
CONFIG = replace(
    BASE,
    num_nextn_predict_layers=1,
    q_lora_rank=32,
    n_group=2,
    qk_rope_head_dim=16,
    v_head_dim=16,
    initializer_range=0.2,
)
PROMPTS = [Prompt(id=f"p{i}", tokens=tuple(range(5 + i, 13 + 3 * i)), text="", meta={}) for i in range(8)]
SEQUENCES = gate_sequences(CONFIG.vocab_size, 6, 48, seed=0, prompts=[prompt.tokens for prompt in PROMPTS])
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=30, seed=1)


@torch.no_grad()
def oracle(seed: int) -> DeepseekV3:
    """Its next token depends on the last alone, and its module computes the same: every greedy draft is right."""
    model = seeded(CONFIG, seed)
    (module,) = model.model.mtp_modules()
    for block in (*model.model.blocks(), module):
        block.self_attn.o_proj.weight.zero_()
        for name, parameter in block.mlp.named_parameters():
            if "down_proj" in name:
                parameter.zero_()
    module.eh_proj.weight.copy_(torch.cat([torch.eye(CONFIG.hidden_size), torch.zeros_like(torch.eye(64))], dim=1))
    module.enorm.weight.fill_(1)
    module.shared_head.norm.weight.copy_(model.model.norm.weight)
    return model


def ours(model: DeepseekV3, speculative_tokens: int = 0) -> TorchEngine:
    assert model.config.eos_token_id is not None
    return TorchEngine(model, model.config.eos_token_id, str, speculative_tokens=speculative_tokens)


def drawn(engine: TorchEngine | VllmEngine, sampling: Sampling, n: int = 1) -> list[Group]:
    return sorted(engine.generate(PROMPTS, n, sampling), key=lambda group: group.prompt.id)


def save(model: DeepseekV3, folder: Path, dtype: str = "fp32") -> None:
    model.save_checkpoint(folder, dtype=dtype)
    names = {f"w{i}": i for i in range(CONFIG.vocab_size)}
    Tokenizer(models.WordLevel(names, unk_token="w0")).save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(seeded(CONFIG), folder)
    engine = VllmEngine(folder, max_model_len=128, kv_cache_gib=0.1, threads=1, speculative_tokens=2)
    yield engine
    engine.close()


def test_without_drafts_the_modules_are_passed_by(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(seeded(CONFIG), tmp_path)
    plain = VllmEngine(tmp_path, max_model_len=128, kv_cache_gib=0.1, threads=1)
    agrees_after_start_and_reloads(plain, caplog)
    assert plain.drafts() == (0, 0)
    plain.close()


def test_two_modules_share_one_embedding_and_one_head(tmp_path: Path) -> None:
    """vLLM's loader did not know the copies of the second module, so that every start ended at the first sync."""
    model = seeded(replace(CONFIG, num_nextn_predict_layers=2))
    save(model, tmp_path)
    engine = VllmEngine(tmp_path, max_model_len=128, kv_cache_gib=0.1, threads=1, speculative_tokens=2)
    engine.load(model.checkpoint_weights(), 1)
    assert check_parity(engine, ours(model), SEQUENCES, 1e-4) < 1e-4
    tokens = [[rollout.tokens for rollout in group.rollouts] for group in drawn(engine, GREEDY)]
    assert tokens == [[rollout.tokens for rollout in group.rollouts] for group in drawn(ours(model), GREEDY)]
    engine.close()


def test_with_drafts_the_main_model_says_the_same(engine: VllmEngine, caplog: pytest.LogCaptureFixture) -> None:
    agrees_after_start_and_reloads(engine, caplog)


def agrees_after_start_and_reloads(engine: VllmEngine, caplog: pytest.LogCaptureFixture) -> None:
    for version, model in enumerate((seeded(CONFIG), seeded(CONFIG, 1), seeded(CONFIG, 2))):
        if version:
            vllm = logging.getLogger("vllm")
            vllm.addHandler(caplog.handler)  # it does not propagate
            engine.load(model.checkpoint_weights(), version)
            vllm.removeHandler(caplog.handler)
        assert check_parity(engine, ours(model), SEQUENCES, 1e-4) < 1e-4
        tokens = [[rollout.tokens for rollout in group.rollouts] for group in drawn(engine, GREEDY)]
        assert tokens == [[rollout.tokens for rollout in group.rollouts] for group in drawn(ours(model), GREEDY)]
    said = {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING}
    assert said <= {"RotaryEmbedding: Failed to load weights"}, "that one comes with any model: it has none to load"


@pytest.fixture
def without_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit of bytes knows the layers of an engine in FP8."""
    monkeypatch.setattr(vllm_engine, "live_prints", lambda _worker, _drafts: {})


@pytest.mark.usefixtures("without_prints")
def test_the_module_that_drafts_is_examined_as_well(engine: VllmEngine) -> None:
    engine.load(seeded(CONFIG).checkpoint_weights(), 1)
    seen = engine.examine(SEQUENCES)
    assert seen.unseen == ()
    drafting = {name for name in seen.products if name.startswith("model.layers.3.")}
    inner = ["self_attn.o_proj", "self_attn.q_b_proj", "mlp.gate", "mlp.shared_experts.down_proj", "eh_proj"]
    assert {f"model.layers.3.{name}" for name in inner} < drafting
    assert {name.replace("layers.2.", "layers.3.") for name in seen.products if "layers.2." in name} < drafting
    assert all(product.error < 1e-4 for product in seen.products.values() if not product.experts), "fp32 against fp32"


@pytest.mark.usefixtures("without_prints")
def test_a_layer_that_nobody_calls_is_not_taken_for_a_right_one(engine: VllmEngine) -> None:
    """A kernel that computes past its layer leaves nothing to compare."""

    def past(model: Any) -> None:
        mlp = model.get_submodule("model.layers.0.mlp")
        mlp.forward = lambda x: mlp.down_proj.forward(mlp.act_fn(mlp.gate_up_proj(x)[0]))[0]

    def mended(model: Any) -> None:
        del model.get_submodule("model.layers.0.mlp").forward

    engine._engine.apply_model(past)
    seen = engine.examine(SEQUENCES)
    engine._engine.apply_model(mended)
    with pytest.raises(ParityError, match=r"^model\.layers\.0\.mlp\.down_proj: the engine made no product"):
        check_products(seen)
    assert engine.examine(SEQUENCES).unseen == ()


def test_a_reload_reaches_the_module_that_drafts(engine: VllmEngine) -> None:
    for seed in (3, 4):
        engine.load(oracle(seed).checkpoint_weights(), seed)
        found = drawn(engine, GREEDY)
        here = ours(oracle(seed), speculative_tokens=2)
        assert [g.rollouts[0].tokens for g in found] == [g.rollouts[0].tokens for g in drawn(here, GREEDY)]
        proposed, accepted = engine.drafts()
        assert accepted / proposed > 0.95 and here.drafts()[0] == here.drafts()[1] > 0


@pytest.mark.parametrize(("temperature", "top_p"), [(0.3, 1.0), (1.0, 0.8)])
def test_sampled_tokens_and_log_probs_are_the_models(engine: VllmEngine, temperature: float, top_p: float) -> None:
    """Log-probs of every token to 1e-4, and the second token, the first that may have been drafted, by chi-square."""
    model = oracle(3)  # drafts are accepted as often as the likeliest token is probable
    engine.load(model.checkpoint_weights(), 9)
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=4, seed=3)
    [group] = engine.generate(PROMPTS[:1], 1000, sampling)
    size, vocabulary = len(PROMPTS[0].tokens), CONFIG.vocab_size
    observed, expected = torch.zeros(vocabulary), torch.zeros(vocabulary)
    starts = [rollout.tokens if i < 200 else rollout.tokens[:2] for i, rollout in enumerate(group.rollouts)]
    tables: dict[tuple[int, ...], torch.Tensor] = {}
    for length in {len(seen) for seen in starts}:
        same = sorted({seen for seen in starts if len(seen) == length})
        with torch.no_grad():
            logits_BTV = model(torch.tensor([(*PROMPTS[0].tokens, *seen) for seen in same]))[:, size - 1 : -1]
        tables |= zip(same, table(logits_BTV, temperature, top_p), strict=True)
    for seen, rollout in zip(starts, group.rollouts, strict=True):
        own = tables[seen].gather(1, torch.tensor(seen)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(rollout.logprobs[: len(seen)]), own, atol=1e-4, rtol=0)
        if len(seen) > 1:
            observed[seen[1]] += 1
            expected += tables[seen][1].exp()
    common = expected >= 5
    counts = torch.cat([observed[common], observed[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    found, freedom = float(((counts - wanted).square() / wanted.clamp_min(1e-9)).sum()), len(wanted) - 1
    print(f"chi-square {found:.1f} at {freedom} degrees of freedom; drafts {engine.drafts()}")
    assert found < freedom + 5 * (2 * freedom) ** 0.5


def table(logits_BTV: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Log-probs of the distribution drawn from."""
    logprobs = (logits_BTV / temperature).log_softmax(-1)
    best, order = logprobs.exp().sort(-1, descending=True)
    outside = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, order, best.cumsum(-1) - best >= top_p)
    return logprobs.masked_fill(outside if top_p < 1 else torch.zeros_like(outside), float("-inf")).log_softmax(-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_drafts_on_a_gpu(tmp_path: Path) -> None:
    """bf16, as GPUs run it: most greedy drafts of the oracle are accepted, before and after a reload."""
    save(oracle(3), tmp_path, "bf16")
    engine = VllmEngine(tmp_path, dtype="bfloat16", max_model_len=128, threads=1, speculative_tokens=1)
    for seed in (3, 4):
        engine.load(((name, tensor.cuda().bfloat16()) for name, tensor in oracle(seed).checkpoint_weights()), seed)
        drawn(engine, GREEDY)
        proposed, accepted = engine.drafts()
        assert accepted / proposed > 0.8
    engine.close()
