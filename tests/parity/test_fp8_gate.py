"""The three questions of the FP8 gate, each with an answer that is right and one that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from rlkit.engine.examination import Examination, Product
from rlkit.model import DeepseekV3
from rlkit.model.precision import compute_in_float8
from rlkit.parity import Agreement, ParityError, fp8_gate, gate_sequences
from rlkit.parity.fp8 import check_bytes, check_products, share_of_flips
from rlkit.train.rounding import UNIT, Rounding
from rlkit.train.trainer import ModelTrainer
from tests.model.float8 import TILED
from tests.model.tiny import BASE, seeded
from tests.train.test_rounding import learner

SEQUENCES = gate_sequences(BASE.vocab_size, 8, 40, seed=3, prompts=[tuple(range(5, 20))])
OTHERWISE = Rounding(unit=0.0, seed=0, other_activations=True)
Weights = dict[str, Tensor]
SEEN = Examination(
    prints={"a.weight": "x", "b.weight": "y"},
    unused=frozenset({"mtp.weight"}),
    products={
        "a": Product(equal=0.9996, error=1.7e-3),
        "b.experts": Product(equal=0.6, error=3e-3, experts=True),
    },
    chosen={},
    quantises_activations=False,
)


def test_bytes() -> None:
    check_bytes({"a.weight": "x", "b.weight": "y", "mtp.weight": "z"}, SEEN)
    with pytest.raises(ParityError, match=r"b\.weight is y in the engine and q there .* 1 of 2 tensors"):
        check_bytes({"a.weight": "x", "b.weight": "q"}, SEEN)
    with pytest.raises(ParityError, match=r"c\.weight is nothing in the engine and z"):
        check_bytes({"a.weight": "x", "b.weight": "y", "c.weight": "z"}, SEEN)
    with pytest.raises(ParityError, match=r"b\.weight is y in the engine and nothing there"):
        check_bytes({"a.weight": "x"}, SEEN)


def with_product(name: str, product: Product, quantises: bool = False) -> Examination:
    return replace(SEEN, products={**SEEN.products, name: product}, quantises_activations=quantises)


def test_products() -> None:
    check_products(SEEN)
    with pytest.raises(ParityError, match=r"^a: .* 50\.00% of bits are equal, relative error 0\.002; wanted: at least"):
        check_products(with_product("a", Product(equal=0.5, error=2e-3)))
    with pytest.raises(ParityError, match=r"^b\.experts: .* relative error 0\.02; wanted: error at most 0\.01"):
        check_products(with_product("b.experts", Product(equal=0.6, error=2e-2, experts=True)))
    with pytest.raises(ParityError, match=r"^a: .* relative error nan"):
        check_products(with_product("a", Product(equal=float("nan"), error=float("nan"))))
    with pytest.raises(ParityError, match=r"^c\.o_proj: the engine made no product .* and 2 of 4 layers are like that"):
        check_products(replace(SEEN, unseen=("c.o_proj", "c.q_proj")))
    check_products(with_product("a", Product(equal=0.5, error=2e-3), quantises=True))
    with pytest.raises(ParityError, match=r"^a: .* relative error 0\.02"):
        check_products(with_product("a", Product(equal=0.5, error=2e-2), quantises=True))


def test_flips_are_those_of_sets() -> None:
    ours = {"g": torch.tensor([[1, 2], [3, 4], [5, 6], [7, 0]]), "not asked": torch.zeros(4, 2)}
    assert share_of_flips(ours, {"g": torch.tensor([[2, 1], [3, 5], [6, 5], [0, 7]])}) == 0.25
    assert share_of_flips(ours, {}) is None


@dataclass
class Sampler:
    """An engine that computes as a trainer does, save for what it is told to say."""

    model: ModelTrainer
    seen: Examination = SEEN
    noise: Rounding | None = None
    shift: float = 0.0

    def replicas(self) -> Sequence[Sampler]:
        return (self,)

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        return self.seen

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        answer = self.model.logprobs(sequences, self.noise)
        return [[value + self.shift for value in row] for row in answer]

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        return self.model.trace(tokens)


@pytest.fixture(scope="module")
def trainer() -> ModelTrainer:
    return learner(seeded(BASE).bfloat16())


def seen_by(trainer: ModelTrainer, form: str, *, quantises: bool = False) -> Examination:
    """What an honest engine shows."""
    return replace(
        SEEN,
        prints=trainer.fingerprints(form),
        chosen=trainer.routes(SEQUENCES),
        quantises_activations=quantises,
    )


def test_an_honest_engine_passes_and_its_numbers_are_recorded(trainer: ModelTrainer) -> None:
    honest = Sampler(trainer, seen_by(trainer, "fp8_weights"), Rounding(unit=UNIT["bf16"], seed=77))
    found = fp8_gate(honest, trainer, SEQUENCES, 1e-4, "fp8_weights", "fp8")()
    assert found.numbers.keys() == {"parity", "parity_mean", "parity_p99", "parity_bf16", "parity_flips"}
    assert 0 < found.mean <= (found.p99 or 0) <= found.gap and found.mean < 2 * (found.bf16 or 0)
    assert found.flips == 0.0 and found.audited == len(trainer.fingerprints("fp8_weights"))
    assert "2 x what rounding changes" in str(found) and f"{found.audited} tensors alike byte for byte" in str(found)
    print(found)


def test_each_question_stops_a_run(trainer: ModelTrainer) -> None:
    seen = seen_by(trainer, "fp8_weights")
    name = "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"
    changed = replace(seen, prints={**seen.prints, name: "float32 [1, 1] 0"})
    wrong = Product(equal=0.4, error=2e-2)
    for engine, message in (
        (Sampler(trainer, changed), f"{name} is float32"),
        (Sampler(trainer, replace(seen, products={"layer": wrong})), "layer: the engine's output is not the product"),
        (Sampler(trainer, seen, shift=0.5), "should be at most .* on average, 2 x what rounding changes"),
        (Sampler(trainer, seen, shift=float("nan")), "inf nats"),
    ):
        with pytest.raises(ParityError, match=message):
            fp8_gate(engine, trainer, SEQUENCES, 1e-4, "fp8_weights", "fp8")()


def in_fp8(mode: str) -> ModelTrainer:
    model = seeded(TILED).bfloat16()
    compute_in_float8(model, mode)
    return learner(model)


def high_engine(trainer: ModelTrainer, dtype: torch.dtype, broken: Callable[[Weights], Weights]) -> Sampler:
    """An engine without FP8 that has loaded what the trainer publishes for one, or something like it."""
    model = DeepseekV3(TILED).to(dtype)
    sent = {name: tensor.clone() for name, tensor in trainer.weights(form="fp8 as bf16")}
    model.load_weights(broken(sent).items())
    return Sampler(learner(model))


def with_layer(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    return lambda weights: {name: change(tensor) if part in name else tensor for name, tensor in weights.items()}


BROKEN: Mapping[str, Callable[[Weights], Weights]] = {
    "a layer's weights are missing": with_layer("layers.1.", torch.zeros_like),
    "its experts are missing": with_layer("layers.2.mlp.experts.", torch.zeros_like),
    "a matrix has the other sign": with_layer("layers.1.self_attn.o_proj", torch.neg),
    "rows are in another order": with_layer("layers.0.mlp.down_proj", lambda w: w.roll(1, 0)),
    "a matrix is of another model": with_layer("layers.2.self_attn.kv_b_proj", lambda w: w.flip(1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_engine_without_fp8_is_judged_by_the_trainers_weights(dtype: torch.dtype) -> None:
    """What rounding the activations does is shown, and hides no fault."""
    trainer = in_fp8("fp8")
    found = fp8_gate(high_engine(trainer, dtype, dict), trainer, SEQUENCES, 1e-4, "fp8", "bf16")()
    print(found)
    assert found.trained is not None and found.bf16 is not None
    assert found.mean <= 2 * found.bf16 and found.trained > 2 * found.mean
    assert found.numbers["parity_trained"] == found.trained
    assert "3 x what rounding changes" in found.limit
    assert f"as the trainer trains, the two are {found.trained:.1e} apart" in str(found)
    for fault, broken in BROKEN.items():
        with pytest.raises(ParityError, match="3 x what rounding changes") as error:
            fp8_gate(high_engine(trainer, dtype, broken), trainer, SEQUENCES, 1e-4, "fp8", "bf16")()
        print(fault, str(error.value)[:120])
    with pytest.raises(ParityError, match=r"First block that differs: model\.layers\.1\.self_attn "):
        broken = BROKEN["a matrix has the other sign"]
        fp8_gate(high_engine(trainer, dtype, broken), trainer, SEQUENCES, 1e-4, "fp8", "bf16")()


@pytest.mark.slow
def test_engines_in_fp8_are_compared_with_their_own_kind_of_activations() -> None:
    """W8A16 on CPUs and W8A8 on GPUs, each beside a trainer of the other kind."""
    for mode, quantises, factor in (("fp8", False, 2), ("fp8_weights", True, 3)):
        trainer = in_fp8(mode)
        engine = Sampler(trainer, seen_by(trainer, mode, quantises=quantises), OTHERWISE)
        found = fp8_gate(engine, trainer, SEQUENCES, 1e-4, mode, "fp8")()
        assert found.mean == 0 and (found.trained or 0) > 1e-3 and f"{factor} x what" in found.limit
        with pytest.raises(ParityError, match=f"{factor} x what rounding changes"):
            fp8_gate(replace(engine, shift=0.5), trainer, SEQUENCES, 1e-4, mode, "fp8")()
        alike = Sampler(trainer, seen_by(trainer, mode, quantises=not quantises))
        assert fp8_gate(alike, trainer, SEQUENCES, 1e-4, mode, "fp8")().trained is None


def test_a_trainer_whose_own_activations_are_no_numbers_is_not_let_through() -> None:
    trainer = in_fp8("fp8")
    engine = high_engine(trainer, torch.bfloat16, dict)
    plain = trainer.logprobs

    def logprobs(sequences: Sequence[Sequence[int]], rounding: Rounding | None = None) -> list[list[float]]:
        return (
            [[float("nan")] * len(row) for row in plain(sequences)] if rounding is None else plain(sequences, rounding)
        )

    trainer.logprobs = logprobs  # type: ignore[method-assign]
    with pytest.raises(ParityError, match="no numbers with the activations that it trains with"):
        fp8_gate(engine, trainer, SEQUENCES, 1e-4, "fp8", "bf16")()


def test_every_replica_is_asked(trainer: ModelTrainer) -> None:
    seen = seen_by(trainer, "fp8_weights")

    @dataclass
    class Two:
        engines: Sequence[Sampler] = field(default_factory=tuple)

        def replicas(self) -> Sequence[Sampler]:
            return self.engines

    def check(*engines: Sampler) -> Callable[[], Agreement]:
        return fp8_gate(Two(engines), trainer, SEQUENCES, 1e-4, "fp8_weights", "fp8")

    check(Sampler(trainer, seen), Sampler(trainer, seen))()
    with pytest.raises(ParityError, match="layer: "):
        bad = replace(seen, products={"layer": Product(equal=0.0, error=1.0)})
        check(Sampler(trainer, seen), Sampler(trainer, bad))()
