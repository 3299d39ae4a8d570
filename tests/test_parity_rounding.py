"""What the gate lets pass and what not when a gap has to be explained by rounding: two implementations, one corrupted.

The honest engine is transformers' model, a sequence at a time with eager attention; the trainer packs and fuses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM, PreTrainedModel

from rlkit.model import DeepseekV3
from rlkit.model.hf import HfModel
from rlkit.parity import Agreement, Noise, ParityError, check_parity, gate, gate_sequences
from rlkit.train.rounding import UNIT, Rounding
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from tests.hf_folders import make, save
from tests.hf_reference import VOCAB, HfTrainer, make_model, save_checkpoint
from tests.train.test_rounding import learner
from tests.train.test_trainer import CFG

pytestmark = pytest.mark.slow
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEQUENCES = gate_sequences(VOCAB, 8, 40, seed=1, prompts=[tuple(range(5, 20))])


@dataclass
class Engines:
    """As many engines as there are models; the side that the gate calls the sampler."""

    models: Sequence[HfTrainer]

    def replicas(self) -> Sequence[HfTrainer]:
        return self.models


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shallow")
    save_checkpoint(make_model(), folder)
    return folder


@dataclass
class Pair:
    """One model twice, in two implementations."""

    trainer: ModelTrainer
    engine: PreTrainedModel
    dtype: str
    sequences: Sequence[Sequence[int]] = SEQUENCES

    def check(self, engine: PreTrainedModel | None = None, tolerance: float = 1e-4) -> Agreement:
        """The gate of a run in which both sides have this dtype."""
        theirs = HfTrainer(self.engine if engine is None else engine)  # type: ignore[arg-type]
        return gate(Engines([theirs]), self.trainer, self.sequences, tolerance, UNIT[self.dtype])()

    def changed(self, change: Callable[[dict[str, Tensor]], None]) -> PreTrainedModel:
        """The engine's model with other weights."""
        engine = copy.deepcopy(self.engine)
        with torch.no_grad():
            change(engine.state_dict())
        return engine


def load(folder: Path, dtype: str) -> Pair:
    ours = DeepseekV3.from_checkpoint(folder, DTYPES[dtype])
    theirs = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="eager")
    return Pair(trainer=learner(ours), engine=theirs.eval(), dtype=dtype)


@pytest.fixture(scope="module")
def fp32(shallow: Path) -> Pair:
    return load(shallow, "fp32")


@pytest.fixture(scope="module")
def bf16(shallow: Path) -> Pair:
    return load(shallow, "bf16")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """30 layers of sharp attention, in which the last digit of a number grows to more than the tolerance."""
    model = make("llama", num_hidden_layers=30, initializer_range=0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(2)
        model.get_output_embeddings().weight.mul_(0.2)
    folder = save(model, tmp_path_factory.mktemp("deep"))
    engine = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    sequences = gate_sequences(model.config.vocab_size, 8, 24, seed=1, prompts=[tuple(range(5, 15))])
    return Pair(
        trainer=learner(HfModel.from_checkpoint(folder)), engine=engine.eval(), dtype="fp32", sequences=sequences
    )


Change = Callable[[dict[str, Tensor]], None]


def flip(name: str, place: int, bit: int) -> Change:
    """One bit of one number: 31 is the sign in fp32 and 15 in bf16, the exponent starts at 23 and at 7."""

    def change(state: dict[str, Tensor]) -> None:
        number = state[name].view(-1)[place : place + 1]
        integer = torch.int32 if number.dtype == torch.float32 else torch.int16
        mask = 1 << bit if bit != 8 * number.element_size() - 1 else -(1 << bit)
        number.copy_((number.view(integer) ^ torch.tensor([mask], dtype=integer)).view(number.dtype))

    return change


def scale(name: str, factor: float, row: int | None = None) -> Change:
    def change(state: dict[str, Tensor]) -> None:
        (state[name] if row is None else state[name][row]).mul_(factor)

    return change


def swap_experts(state: dict[str, Tensor]) -> None:
    for part in ("gate_up_proj", "down_proj"):
        experts = state[f"model.layers.1.mlp.experts.{part}"]
        experts.copy_(experts[[1, 0, *range(2, len(experts))]])


def lose_bias(state: dict[str, Tensor]) -> None:
    state["model.layers.2.mlp.gate.e_score_correction_bias"].zero_()


def shift_head(state: dict[str, Tensor]) -> None:
    state["lm_head.weight"].copy_(state["lm_head.weight"].roll(1, 0))


ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
USED = SEQUENCES[6][20]
"""A token that the sequences hold."""
CORRUPT: dict[str, Change] = {
    "sign in q_b": flip(f"{ATTENTION}.q_b_proj.weight", 700, 31),
    "sign in kv_b": flip(f"{ATTENTION}.kv_b_proj.weight", 700, 31),
    "sign in o_proj": flip(f"{ATTENTION}.o_proj.weight", 700, 31),
    "sign in the router": flip(f"{MLP}.gate.weight", 100, 31),
    "sign in an expert": flip(f"{MLP}.experts.down_proj", 2100, 31),
    "exponent in an expert": flip(f"{MLP}.experts.gate_up_proj", 2100, 23),
    "exponent in the shared expert": flip(f"{MLP}.shared_experts.up_proj.weight", 90, 24),
    "sign in a used row of the embedding": flip("model.embed_tokens.weight", USED * 64 + 3, 31),
    "exponent in the head": flip("lm_head.weight", USED * 64 + 3, 23),
    "a row of o_proj": scale(f"{ATTENTION}.o_proj.weight", 0.0, row=5),
    "one expert 1 % too large": scale(f"{MLP}.experts.down_proj", 1.01, row=3),
    "one expert twice": scale(f"{MLP}.experts.down_proj", 2.0, row=3),
    "gains of a norm 1 % too large": scale("model.layers.1.input_layernorm.weight", 1.01),
    "one gain of the last norm": scale("model.norm.weight", 1.05, row=7),
    "two experts swapped": swap_experts,
    "the router's bias lost": lose_bias,
    "rows of the head off by one": shift_head,
}


@pytest.mark.parametrize("tolerance", [1e-4, 1e-9])
def test_honest_engines_agree_in_fp32(fp32: Pair, tolerance: float) -> None:
    """Also where no gap passes unexplained: rounding explains it, and not by much more than it has to."""
    found = fp32.check(tolerance=tolerance)
    assert 0 < found.mean <= found.gap <= 2e-5
    assert found.limit == "limit 0.0001" or "16 x what rounding changes" in found.limit


@pytest.mark.parametrize("corrupt", CORRUPT)
def test_wrong_weights_are_caught_in_fp32(fp32: Pair, corrupt: str) -> None:
    engine = fp32.changed(CORRUPT[corrupt])
    with pytest.raises(ParityError, match="engine and trainer disagree"):
        fp32.check(engine)


def test_a_position_too_far_is_caught_in_fp32(fp32: Pair) -> None:
    """From the tenth token on the engine counts one position too many."""
    engine = copy.deepcopy(fp32.engine)
    rotary: nn.Module = engine.model.rotary_emb  # type: ignore[union-attr]
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(x, position_ids + (position_ids >= 10))  # type: ignore[method-assign]
    with pytest.raises(ParityError, match=r"First block that differs: model\.layers\.0\.self_attn"):
        fp32.check(engine)


@pytest.mark.slow
def test_the_change_that_rounding_makes_is_that_between_two_implementations(fp32: Pair, bf16: Pair, deep: Pair) -> None:
    """So the limit is neither so low that honest engines fail nor so high that it says nothing."""
    for pair in (fp32, bf16, deep):
        plain = pair.trainer.logprobs(pair.sequences)
        noise = Noise(pair.trainer, UNIT[pair.dtype], pair.sequences, plain)
        limit = noise.limit(0.0, [len(row) for row in plain])
        found = torch.tensor(plain) - torch.tensor(HfTrainer(pair.engine).logprobs(pair.sequences))  # type: ignore[arg-type]
        ratio = limit.mean / float(found.abs().mean())
        print(f"mean gap {found.abs().mean():.1e}, limit {limit.mean:.1e}: {ratio:.1f} times")
        assert 1.5 < ratio < 40


@pytest.mark.slow
def test_a_deep_model_passes_honestly(deep: Pair) -> None:
    """Its gap is above the tolerance, which alone would stop the run."""
    with pytest.raises(ParityError, match=r"should be at most 0\.0001"):
        check_parity(HfTrainer(deep.engine), deep.trainer, deep.sequences, 1e-4)  # type: ignore[arg-type]
    found = deep.check()
    assert found.gap > 1e-4
    assert "16 x what rounding changes" in found.limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("corrupt", "layer"),
    [("sign", 0), ("exponent", 0), ("gain", 0), ("row", 0), ("sign", 14), ("exponent", 14), ("gain", 25), ("row", 25)],
)
def test_wrong_weights_are_caught_in_a_deep_model(deep: Pair, corrupt: str, layer: int) -> None:
    """One number, a percent of a norm, a row: each moves log-probs by more than rounding does.

    One number close to the end does not, and nobody can tell it from rounding.
    """
    inside = f"model.layers.{layer}."
    change = {
        "sign": flip(f"{inside}self_attn.o_proj.weight", 70, 31),
        "exponent": flip(f"{inside}mlp.up_proj.weight", 70, 24),
        "gain": scale(f"{inside}input_layernorm.weight", 1.01),
        "row": scale(f"{inside}self_attn.v_proj.weight", 0.0, row=3),
    }[corrupt]
    with pytest.raises(ParityError, match=r"x what rounding changes") as error:
        deep.check(deep.changed(change))
    assert f"First block that differs: model.layers.{layer}." in str(error.value)


def test_honest_engines_agree_in_bf16(bf16: Pair) -> None:
    found = bf16.check()
    assert 1e-3 < found.mean < found.gap
    assert "on average, 3 x what rounding changes" in found.limit


COARSE = {
    "one expert four times": scale(f"{MLP}.experts.down_proj", 4.0, row=3),
    "gains of a norm lost": lambda state: state["model.layers.1.input_layernorm.weight"].fill_(0.5),
    "two experts swapped": swap_experts,
    "rows of the head off by one": shift_head,
    "a layer's attention missing": scale(f"{ATTENTION}.o_proj.weight", 0.0),
}


@pytest.mark.parametrize("corrupt", COARSE)
def test_what_rounding_cannot_explain_is_caught_in_bf16(bf16: Pair, corrupt: str) -> None:
    """Faults that move the mean; what is smaller than a rounding of bf16 nobody can see there."""
    with pytest.raises(ParityError, match=r"nats on average, should be at most .* 3 x what rounding changes"):
        bf16.check(bf16.changed(COARSE[corrupt]))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [f"{ATTENTION}.o_proj.weight", f"{MLP}.experts.down_proj", "lm_head.weight"])
def test_a_byte_that_makes_a_number_huge_is_caught(dtype: str, name: str, request: pytest.FixtureRequest) -> None:
    """The highest bit of its exponent: 0.1 becomes 3e37."""
    pair: Pair = request.getfixturevalue(dtype)
    with pytest.raises(ParityError):
        pair.check(pair.changed(flip(name, USED * 64 + 3, {"fp32": 30, "bf16": 14}[dtype])))


@pytest.mark.parametrize("coarse", ["trainer", "engine"])
def test_one_side_in_bf16_is_held_against_bf16(fp32: Pair, bf16: Pair, coarse: str) -> None:
    one, other = (bf16, fp32) if coarse == "trainer" else (fp32, bf16)
    mixed = Pair(trainer=one.trainer, engine=other.engine, dtype="bf16")
    assert mixed.check().mean > 1e-3
    with pytest.raises(ParityError, match="nats on average"):
        mixed.check(mixed.changed(COARSE["two experts swapped"]))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_wrong_engine_of_two_is_enough(dtype: str, request: pytest.FixtureRequest) -> None:
    pair: Pair = request.getfixturevalue(dtype)
    good, wrong = HfTrainer(pair.engine), HfTrainer(pair.changed(swap_experts))  # type: ignore[arg-type]
    gate(Engines([good, good]), pair.trainer, pair.sequences, 1e-4, UNIT[dtype])()
    for engines in ([good, wrong], [wrong, good]):
        with pytest.raises(ParityError):
            gate(Engines(engines), pair.trainer, pair.sequences, 1e-4, UNIT[dtype])()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_rounding_explains_what_is_not_a_number(dtype: str, number: float, request: pytest.FixtureRequest) -> None:
    pair: Pair = request.getfixturevalue(dtype)
    with pytest.raises(ParityError, match=r"inf nats, should be finite.*differs: model\.layers\.1\.mlp "):
        pair.check(pair.changed(lambda s: s[f"{MLP}.shared_experts.up_proj.weight"][0].fill_(number)), tolerance=100.0)


def test_rounding_is_measured_only_where_a_gap_needs_it(fp32: Pair) -> None:
    """In a shallow model the gate costs nothing more than it did."""
    asked: list[Rounding | None] = []

    class Counting(ModelTrainer):
        def logprobs(self, sequences: Sequence[Sequence[int]], rounding: Rounding | None = None) -> list[list[float]]:
            asked.append(rounding)
            return super().logprobs(sequences, rounding)

    model = fp32.trainer.model
    counting = Counting(model, TorchStepper(model, CFG), reference=None)
    engines = Engines([HfTrainer(fp32.engine)] * 3)  # type: ignore[arg-type]
    gate(engines, counting, SEQUENCES, 1e-4, UNIT["fp32"])()
    assert asked == [None]
    gate(engines, counting, SEQUENCES, 1e-9, UNIT["fp32"])()
    assert [each and each.seed for each in asked[1:]] == [None, 0, 1, 2, 3], "once for all three engines"


def test_what_a_user_allows_passes(bf16: Pair) -> None:
    wrong = bf16.changed(COARSE["two experts swapped"])
    assert bf16.check(wrong, tolerance=50.0).limit == "limit 50"
