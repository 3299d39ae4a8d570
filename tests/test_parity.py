"""The gate on two transformers models, one of them changed: every change is found and put down to the right block."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from rlkit.parity import ParityError, check_parity, gate_sequences
from tests.hf_reference import VOCAB, HfTrainer, make_model

PROMPTS = [tuple(range(5, 15)), tuple(range(20, 70))]


@pytest.fixture(scope="module")
def trainer() -> HfTrainer:
    return HfTrainer(make_model())


@pytest.fixture
def engine(trainer: HfTrainer) -> HfTrainer:
    return HfTrainer(copy.deepcopy(trainer.model))


@pytest.fixture(scope="module")
def sequences() -> tuple[tuple[int, ...], ...]:
    return gate_sequences(VOCAB, 4, 32, seed=1, prompts=PROMPTS)


def test_equal_models_have_no_gap(trainer, engine, sequences):
    assert check_parity(engine, trainer, sequences, 0.0) == 0.0


@pytest.mark.parametrize(
    ("parameter", "block"),
    [
        ("model.embed_tokens.weight", "model.layers.0.self_attn"),
        ("model.layers.0.input_layernorm.weight", "model.layers.0.self_attn"),
        ("model.layers.0.self_attn.q_a_proj.weight", "model.layers.0.self_attn"),
        ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp"),
        ("model.layers.1.self_attn.kv_a_proj_with_mqa.weight", "model.layers.1.self_attn"),
        ("model.layers.1.mlp.gate.weight", "model.layers.1.mlp"),
        ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp"),
        ("model.layers.2.self_attn.o_proj.weight", "model.layers.2.self_attn"),
        ("model.layers.2.mlp.shared_experts.up_proj.weight", "model.layers.2.mlp"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_one_changed_tensor_is_put_down_to_its_block(trainer, engine, sequences, parameter, block):
    tensor = engine.model.state_dict()[parameter]
    # Small: 0.5 % of every weight, the size of an error that a reward curve would not show.
    tensor.mul_(1 + 0.005 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ParityError, match=rf"First block that differs: {block} \(") as error:
        check_parity(engine, trainer, sequences, 1e-4)
    assert "should be at most 0.0001" in str(error.value)


def test_message_names_the_gap_and_the_token(trainer, engine, sequences):
    token = sequences[2][20]
    engine.model.state_dict()["lm_head.weight"][token] += 1.0
    ours, theirs = (torch.tensor(model.logprobs(sequences)) for model in (engine, trainer))
    gaps = (ours - theirs).abs()
    i, t = divmod(int(gaps.argmax()), gaps.shape[1])
    with pytest.raises(ParityError) as error:
        check_parity(engine, trainer, sequences, 1e-4)
    assert f"= {gaps.max():.3g} nats" in str(error.value)
    assert f"sequence {i}, token {t + 1} (id {sequences[i][t + 1]})" in str(error.value)


def test_without_tolerance_the_gap_is_reported(trainer, engine, sequences):
    engine.model.state_dict()["lm_head.weight"].mul_(1.5)
    ours, theirs = (torch.tensor(model.logprobs(sequences)) for model in (engine, trainer))
    assert check_parity(engine, trainer, sequences, None) == pytest.approx((ours - theirs).abs().max().item(), rel=1e-5)


def test_nan_is_never_only_reported(trainer, engine, sequences):
    engine.model.state_dict()["model.layers.1.mlp.shared_experts.up_proj.weight"][0, 0] = float("nan")
    with pytest.raises(ParityError, match=r"= inf nats, should be finite.*differs: model\.layers\.1\.mlp "):
        check_parity(engine, trainer, sequences, None)


def test_gate_sequences_are_half_prompts_half_random():
    sequences = gate_sequences(VOCAB, 6, 24, seed=3, prompts=PROMPTS)
    assert [len(s) for s in sequences] == [24] * 6
    assert sequences[0][:10] == sequences[2][:10] == PROMPTS[0]
    assert sequences[0] != sequences[2], "a prompt used twice is continued in two ways"
    assert sequences[1] == PROMPTS[1][:24]
    assert {t for s in sequences[3:] for t in s} <= set(range(VOCAB))
    assert len({t for s in sequences[3:] for t in s}) > 30
    assert sequences == gate_sequences(VOCAB, 6, 24, seed=3, prompts=PROMPTS)
    assert sequences[3:] != gate_sequences(VOCAB, 6, 24, seed=4, prompts=PROMPTS)[3:]


def test_gate_sequences_without_prompts_are_random():
    assert len(set(gate_sequences(VOCAB, 4, 8, seed=0, prompts=()))) == 4


@pytest.mark.parametrize(("num", "length"), [(0, 8), (4, 1)])
def test_nothing_to_compare_is_an_error(num, length):
    with pytest.raises(ValueError, match=f"num={num} and length={length}"):
        gate_sequences(VOCAB, num, length, seed=0, prompts=PROMPTS)


class Spoken:
    """Says what it is told to."""

    def __init__(self, logprobs: list[float], margins: list[float]) -> None:
        self.said, self.margins = logprobs, margins

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [self.said]

    def trace(self, tokens: Sequence[int]) -> dict[str, torch.Tensor]:
        layers = {f"model.layers.{i}.mlp": torch.ones(len(tokens), 2) for i in range(2)}
        clear = torch.full((len(tokens), 1), 0.5)
        return layers | {"model.layers.0.mlp.gate": clear, "model.layers.1.mlp.gate": torch.tensor([self.margins]).T}


@pytest.mark.parametrize(
    ("margins", "passes"),
    [
        ([0.1, 0.1, 1e-6, 0.1, 0.1], True),  # the tie at position 2 may change the prediction of token 3 and later
        ([0.1, 1e-6, 0.1, 0.1, 0.1], True),
        ([0.1, 0.1, 0.1, 1e-6, 0.1], False),  # a tie cannot change what comes before it
        ([0.1] * 5, False),
    ],
)
def test_a_gap_behind_a_tie_is_rounding_and_any_other_is_not(margins: list[float], passes: bool) -> None:
    trainer = Spoken([-1.0, -2.0, -1.0, -1.0], margins)
    engine = Spoken([-1.0, -2.0 + 1e-6, -2.5, -1.0], margins)
    if passes:
        assert check_parity(engine, trainer, [(1, 2, 3, 4, 5)], 1e-4) <= 2e-6
    else:
        with pytest.raises(ParityError, match=r"= 1\.5 nats.* token 3 "):
            check_parity(engine, trainer, [(1, 2, 3, 4, 5)], 1e-4)


def test_a_tie_excuses_no_nan() -> None:
    trainer = Spoken([-1.0, -2.0], [1e-6] * 3)
    with pytest.raises(ParityError):
        check_parity(Spoken([-1.0, float("nan")], [1e-6] * 3), trainer, [(1, 2, 3)], 1e-4)
