"""vLLM in FP8 on this CPU: it computes what the trainer computes, at every sync, and every planted fault is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn

pytest.importorskip("vllm")

from rlkit.algo import SftLoss
from rlkit.engine.vllm import VllmEngine
from rlkit.engine.vllm.fp8 import fp8_problem
from rlkit.engine.whole import HalfLoadedError
from rlkit.model import DeepseekV3
from rlkit.model.files.folder import SCALE
from rlkit.model.files.names import published_names
from rlkit.model.files.sent import SentError, sent_table
from rlkit.model.precision import compute_in_float8
from rlkit.parity import Agreement, ParityError, check_served, fp8_gate, gate_sequences
from rlkit.quant.fp8 import block_scales, quantise_blocks
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from tests.model.tiny import BASE, seeded
from tests.train.test_trainer import CFG, demonstrations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(fp8_problem() is not None, reason=f"vLLM cannot compute in FP8 here: {fp8_problem()}"),
]
CONFIG = replace(
    BASE, num_hidden_layers=2, n_routed_experts=4, n_group=2, topk_group=1, hidden_size=256,
    intermediate_size=256, moe_intermediate_size=128, q_lora_rank=128, kv_lora_rank=128,
    qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32, num_attention_heads=4,
    num_nextn_predict_layers=1, initializer_range=0.06, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)  # fmt: skip
SEQUENCES = gate_sequences(CONFIG.vocab_size, 8, 40, seed=2, prompts=[tuple(range(5, 20))])
LINEAR = "model.layers.0.mlp.down_proj.weight"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
GATE = "model.layers.1.mlp.gate.weight"
DRAFTS = "model.layers.2.mlp.shared_experts.up_proj.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def trainer() -> ModelTrainer:
    model = seeded(CONFIG).bfloat16()
    state = model.state_dict()
    state[LINEAR][:128, 128:] *= 4  # else all scales of a random matrix are the same power of two
    compute_in_float8(model, "fp8_weights")
    return ModelTrainer(model, TorchStepper(model, replace(CFG, weight_decay=0.0)), reference=None)


@pytest.fixture(scope="module")
def engine(trainer: ModelTrainer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("fp8")
    assert isinstance(trainer.model, DeepseekV3)
    trainer.model.save_checkpoint(folder, "fp8_weights")
    words = {f"w{i}": i for i in range(CONFIG.vocab_size)}
    Tokenizer(models.WordLevel(words, unk_token="w2")).save(str(folder / "tokenizer.json"))
    expected = sent_table(published_names(CONFIG), "fp8")
    sizes = {"max_model_len": 128, "max_num_seqs": 16, "kv_cache_gib": 0.1, "threads": 1}
    engine = VllmEngine(folder, dtype="fp8", expected=expected, speculative_tokens=1, **sizes)
    yield engine
    engine.close()


def check(engine: VllmEngine, trainer: ModelTrainer) -> Agreement:
    return fp8_gate(engine, trainer, SEQUENCES, 1e-4, "fp8_weights", "fp8")()


def sent(trainer: ModelTrainer) -> Weights:
    return {name: tensor.clone() for name, tensor in trainer.weights(form="fp8_weights")}


def in_model(engine: VllmEngine, change: Callable[[nn.Module], None]) -> None:
    engine._engine.apply_model(change)


def test_the_healthy_engine_passes_at_every_sync(engine: VllmEngine, trainer: ModelTrainer) -> None:
    before: list[list[float]] = []
    for step in range(3):
        engine.load(trainer.weights(form="fp8_weights"), step)
        found = check(engine, trainer)
        print(f"sync {step}: {found}")
        assert found.audited == len(sent(trainer)) - 2, "all but what the MTP module repeats: embedding and head"
        assert found.bf16 is not None
        assert found.mean <= 2 * found.bf16, "as far apart as two programs in bf16"
        assert found.flips is not None and found.flips < 0.05
        assert engine.logprobs(SEQUENCES) != before, "the weights have changed"
        before = engine.logprobs(SEQUENCES)
        trainer.update(demonstrations(step), SftLoss(), 1e-2)
    products = engine.examine(SEQUENCES).products
    linears = {name: product for name, product in products.items() if not product.experts}
    # Two layers of five attention matrices; gate-and-up and down of the dense and the shared MLP; a router. And the
    # module that drafts: attention, shared MLP, router, and what joins its two inputs.
    assert len(linears) == 2 * 5 + 2 * 2 + 1 + 5 + 2 + 1 + 1 and len(products) == len(linears) + 2
    print("least equal", min(linears.values(), key=lambda product: product.equal))
    engine.load(trainer.weights(form="fp8_weights"), 3)


def without(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if name not in names}


def instead(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: change(weights[name])}


def dequantised(name: str) -> Callable[[Weights], Weights]:
    def plant(weights: Weights) -> Weights:
        blocks = weights[name + SCALE].repeat_interleave(128, 0).repeat_interleave(128, 1)
        return weights | {name: (weights[name].float() * blocks).bfloat16()}

    return plant


FAULTS: Mapping[str, tuple[Callable[[Weights], Weights], str]] = {
    "missing scale": (without(LINEAR + SCALE), LINEAR + SCALE),
    "transposed scale": (instead(LINEAR + SCALE, lambda s: s.T.contiguous()), LINEAR + SCALE),
    # A power of two survives bf16; what does not is a scale that is none.
    "scale in bf16": (instead(LINEAR + SCALE, lambda s: (s * 1.01).bfloat16()), LINEAR + SCALE),
    "one scale for all": (instead(EXPERT + SCALE, lambda s: s[:1, :1].clone()), EXPERT + SCALE),
    "bf16 for codes": (dequantised(LINEAR), LINEAR),
    "missing linear": (without(LINEAR, LINEAR + SCALE), LINEAR),
    "missing expert": (without(EXPERT, EXPERT + SCALE), EXPERT),
    "missing gate": (without(GATE), GATE),
    "missing bias": (without(BIAS), BIAS),
    "another scale in the MTP module": (instead(DRAFTS + SCALE, lambda s: s * 2), DRAFTS + SCALE),
    "one expert x 1.09": (instead(EXPERT + SCALE, lambda s: s * 1.09), EXPERT + SCALE),
}
SHAPED_RIGHT = ("transposed scale", "another scale in the MTP module", "one expert x 1.09")
"""What no check of names, shapes and dtypes can see."""


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in SHAPED_RIGHT])
def test_a_planted_fault_is_named_before_it_is_loaded(engine: VllmEngine, trainer: ModelTrainer, fault: str) -> None:
    plant, name = FAULTS[fault]
    whole = sent(trainer)
    engine.load(whole.items(), 1)
    before = engine.logprobs(SEQUENCES)
    with pytest.raises(SentError, match=f"^{name}: "):
        engine.load(plant(whole).items(), 2)
    for ask in (engine.logprobs, engine.examine):
        with pytest.raises(HalfLoadedError, match="holds no whole weights"):
            ask(SEQUENCES)
    with pytest.raises(HalfLoadedError, match="holds no whole weights"):
        engine.trace(SEQUENCES[0])
    engine.load(whole.items(), 3)
    assert engine.logprobs(SEQUENCES) == before, "one whole load heals"


def rolled(tensor: Tensor) -> Tensor:
    """The rows in another order; torch rolls no FP8 numbers, but bytes."""
    return tensor.view(torch.uint8).roll(1, 0).view(tensor.dtype) if tensor.itemsize == 1 else tensor.roll(1, 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_gets_through_is_named_by_the_gate(engine: VllmEngine, trainer: ModelTrainer, fault: str) -> None:
    plant, name = FAULTS[fault]
    whole = sent(trainer)
    # Moved first, so that a tensor that does not come is one of another model.
    moved = {other: rolled(tensor) for other, tensor in whole.items()}
    engine.load(moved.items(), 1)
    expected, engine._expected = engine._expected, None
    try:
        engine.load(plant(whole).items(), 2)
        engine._expected = expected
        with pytest.raises(ParityError, match="of the trainer: ") as error:
            check(engine, trainer)
        print(fault, "->", str(error.value)[:170])
        assert f": {name} is " in str(error.value)
    finally:
        engine._expected = expected
    engine.load(whole.items(), 3)
    check(engine, trainer)


def test_a_load_that_breaks_half_way_is_healed_by_the_next(engine: VllmEngine, trainer: ModelTrainer) -> None:
    whole = sent(trainer)
    engine.load(whole.items(), 1)
    before = engine.logprobs(SEQUENCES)

    def broken(stop: int) -> Iterator[tuple[str, Tensor]]:
        yield from list(whole.items())[:stop]
        raise ConnectionError("the trainer has gone")

    for stop in (3, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ConnectionError, match="has gone"):
            engine.load(broken(stop), 2)
        with pytest.raises(HalfLoadedError):
            engine.logprobs(SEQUENCES)
        engine.load(whole.items(), 3)
        assert engine.logprobs(SEQUENCES) == before
    # A tensor of a wrong shape that vLLM itself stumbles over stays in its buffer.
    expected, engine._expected = engine._expected, None
    try:
        with pytest.raises((RuntimeError, AssertionError)):
            engine.load((whole | {LINEAR: whole[LINEAR][:, :100]}).items(), 4)
    finally:
        engine._expected = expected
    engine.load(whole.items(), 5)
    assert engine.logprobs(SEQUENCES) == before
    check(engine, trainer)


def test_a_layer_that_stayed_in_bf16_is_named(engine: VllmEngine, trainer: ModelTrainer) -> None:
    """Once with its bytes, as a loader would leave it, and once with a kernel that computes from other tensors."""
    engine.load(trainer.weights(form="fp8_weights"), 1)
    name = "model.layers.1.self_attn.o_proj"
    high_NK = dict(trainer.weights())[f"{name}.weight"].clone()

    def forward(x: Tensor) -> tuple[Tensor, None]:
        return x @ high_NK.T, None

    def leave_in_bf16(model: nn.Module) -> None:
        module: Any = model.get_submodule(name)
        module.forward = forward

    def change_bytes(model: nn.Module) -> None:
        module: Any = model.get_submodule(name)
        module.kept = module.weight
        module.weight = nn.Parameter(high_NK, requires_grad=False)

    def mend(model: nn.Module) -> None:
        module: Any = model.get_submodule(name)
        module.weight = module.kept
        del module.kept, module.forward

    engine._engine.apply_model(leave_in_bf16)
    with pytest.raises(ParityError, match=f"^{name}: the engine's output is not the product") as error:
        check(engine, trainer)
    print(str(error.value)[:170])
    engine._engine.apply_model(change_bytes)
    with pytest.raises(ParityError, match=f"of the trainer: {name}.weight is bfloat16") as error:
        check(engine, trainer)
    print(str(error.value)[:170])
    engine._engine.apply_model(mend)
    check(engine, trainer)


def test_scales_that_nobody_reads_and_a_kernel_that_reads_others(engine: VllmEngine, trainer: ModelTrainer) -> None:
    """After a reload the experts' kernel has scales of its own; those under the parameter's name are not read."""
    engine.load(trainer.weights(form="fp8_weights"), 1)
    before = engine.logprobs(SEQUENCES)
    name = "model.layers.1.mlp.experts.routed_experts"

    def scales(model: nn.Module, factor: float, live: bool) -> None:
        module: Any = model.get_submodule(name)
        kernel = module.quant_method.moe_kernel.fused_experts.quant_config
        (kernel.w1_scale if live else module.w13_weight_scale_inv)[3] *= factor

    for live in (False, True):
        engine._engine.apply_model(lambda model, live=live: scales(model, 1.09, live))
        moved = engine.logprobs(SEQUENCES) != before
        assert moved == live
        if live:
            with pytest.raises(ParityError, match=r"experts\.3\.\w+_proj\.weight_scale_inv is "):
                check(engine, trainer)
        else:
            check(engine, trainer)
        engine._engine.apply_model(lambda model, live=live: scales(model, 1 / 1.09, live))
    engine.load(trainer.weights(form="fp8_weights"), 2)
    check(engine, trainer)


def test_published_scales_and_a_trainer_whose_activations_are_in_fp8(engine: VllmEngine, trainer: ModelTrainer) -> None:
    """vLLM on the CPU does not round activations: the trainer is judged without, and shown as it trains."""
    if not engine.examine(SEQUENCES).quantises_activations:
        engine.load(trainer.weights(form="fp8"), 1)
        found = fp8_gate(engine, trainer, SEQUENCES, 1e-4, "fp8", "fp8")()
        print(found)
        asked = zip(engine.logprobs(SEQUENCES), trainer.logprobs(SEQUENCES), strict=True)
        apart = [abs(mine - its) for ours, theirs in asked for mine, its in zip(ours, theirs, strict=True)]
        assert found.audited and found.trained == pytest.approx(sum(apart) / len(apart), rel=1e-4)
        assert found.trained != pytest.approx(found.mean, rel=1e-2), "with other activations"
        assert "2 x what rounding changes" in found.limit and "trainer.dtype=fp8_weights" in str(found)
        with pytest.raises(ParityError, match=r"q_a_proj.weight is .* 96 of 121 tensors differ"):
            check(engine, trainer)
    engine.load(trainer.weights(form="fp8_weights"), 2)
    check(engine, trainer)


def test_an_engine_without_a_trainer_is_held_against_its_files(
    engine: VllmEngine, trainer: ModelTrainer, tmp_path: Path
) -> None:
    assert isinstance(trainer.model, DeepseekV3)
    trainer.model.save_checkpoint(tmp_path, "fp8_weights")
    engine.load(trainer.weights(form="fp8_weights"), 1)
    assert check_served(engine, tmp_path, SEQUENCES) == len(sent(trainer)) - 2
    engine.load(trainer.weights(form="fp8"), 2)
    with pytest.raises(ParityError, match=f"weights of {tmp_path}: model"):
        check_served(engine, tmp_path, SEQUENCES)
    engine.load(trainer.weights(form="fp8_weights"), 3)


def test_power_of_two_scales_make_a_row_independent_of_its_batch(engine: VllmEngine) -> None:
    """vLLM's kernel takes 4 rows another way than 5; that they agree is why the contract has powers of two."""
    product: Any = torch.ops._C.fp8_scaled_mm_cpu
    random = torch.Generator().manual_seed(0)
    weight_NK = torch.randn(256, 256, generator=random) * 0.05
    x_TK = torch.randn(64, 256, generator=random).bfloat16()
    shares = {}
    for powers_of_two in (False, True):
        codes, scales = quantise_blocks(weight_NK, block_scales(weight_NK, powers_of_two=powers_of_two))
        packed = torch.ops._C.convert_weight_packed(codes)
        together, alone = (
            torch.cat([product(x, packed, scales, [128, 128], None, torch.bfloat16, True) for x in x_TK.split(rows)])
            for rows in (64, 1)
        )
        shares[powers_of_two] = float((together != alone).double().mean())
    print(f"outputs of one row alone that differ from those in a batch of 64: {shares}")
    assert shares[True] <= 1e-3 < 0.1 < shares[False]
