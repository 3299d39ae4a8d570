"""Weights on their way to an engine: what each form holds, and that nothing else gets through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlkit.model.files.folder import SCALE, encode
from rlkit.model.files.names import published_names
from rlkit.model.files.sent import (
    FORMS,
    Sent,
    SentError,
    checked_sent,
    fingerprints,
    form_for,
    form_names,
    in_form,
    plain_table,
    sent_table,
)
from rlkit.model.files.verify import tensor_hash
from tests.model.tiny import BASE, seeded

CONFIG = replace(BASE, hidden_size=256, intermediate_size=256, num_nextn_predict_layers=1)
TABLE = published_names(CONFIG)
MODEL = seeded(CONFIG).bfloat16()
LINEAR = "model.layers.0.mlp.down_proj.weight"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
GATE = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.2.mlp.gate.e_score_correction_bias"
Weights = dict[str, Tensor]


def sent(form: str) -> Weights:
    return dict(in_form(MODEL.checkpoint_weights(), MODEL.fp8_names(), form))


def without(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if name not in names}


def instead(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: change(weights[name])}


FAULTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "missing scale": (without(LINEAR + SCALE), LINEAR + SCALE + ": not sent"),
    "transposed scale": (instead(EXPERT + SCALE, lambda s: s.T.contiguous()), EXPERT + SCALE + r": sent with shape"),
    "scale in bf16": (instead(LINEAR + SCALE, Tensor.bfloat16), LINEAR + SCALE + ": sent as bfloat16"),
    "one scale for all": (instead(LINEAR + SCALE, lambda s: s[:1, :1]), LINEAR + SCALE + r": sent with shape \(1, 1\)"),
    "bf16 for codes": (instead(LINEAR, Tensor.bfloat16), LINEAR + ": sent as bfloat16"),
    "codes as bytes": (instead(LINEAR, lambda c: c.view(torch.uint8)), LINEAR + ": sent as uint8"),
    "missing linear": (without(LINEAR, LINEAR + SCALE), f"{LINEAR}: not sent .and 1 more"),
    "missing expert": (without(EXPERT, EXPERT + SCALE), EXPERT + ": not sent"),
    "missing gate": (without(GATE), GATE + ": not sent"),
    "missing bias": (without(BIAS), BIAS + ": not sent"),
    "bias in bf16": (instead(BIAS, Tensor.bfloat16), BIAS + ": sent as bfloat16"),
    "gate in FP8": (instead(GATE, lambda w: w.to(torch.float8_e4m3fn)), GATE + ": sent as float8_e4m3fn"),
    "unknown": (lambda weights: weights | {"model.layers.1.mlp.extra": torch.zeros(1)}, "mlp.extra: sent to the"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_model_passes_in_every_form(form: str) -> None:
    weights = sent(form)
    assert list(form_names(MODEL.published(), MODEL.fp8_names(), form)) == list(weights)
    passed = dict(checked_sent(weights.items(), sent_table(TABLE, form)))
    assert list(passed) == list(weights) and all(passed[name] is weights[name] for name in weights)
    copies = [name for name, place in TABLE.items() if place.copy]
    assert len(copies) == 2, "the MTP module repeats embedding and head"
    without_copies = [(name, tensor) for name, tensor in weights.items() if name not in copies]
    assert len(list(checked_sent(without_copies, sent_table(TABLE, form)))) == len(weights) - 2


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_named(fault: str) -> None:
    plant, message = FAULTS[fault]
    with pytest.raises(SentError, match=message):
        list(checked_sent(plant(sent("fp8_weights")).items(), sent_table(TABLE, "fp8_weights")))


def test_a_tensor_that_comes_twice_and_plain_weights_are_checked_too() -> None:
    weights = sent("plain")
    table = plain_table(MODEL.published())
    with pytest.raises(SentError, match=f"{LINEAR}: sent to the engine twice"):
        list(checked_sent([*weights.items(), (LINEAR, weights[LINEAR])], table))
    with pytest.raises(SentError, match=r"model.norm.weight: sent with shape \(255,\), but the engine's is \(256,\)"):
        list(checked_sent((weights | {"model.norm.weight": torch.ones(255)}).items(), table))
    with pytest.raises(
        SentError, match=r"q_proj.weight: sent as float8_e4m3fn, but the engine computes with float32 or bf"
    ):
        list(checked_sent(sent("fp8").items(), table))
    tied = plain_table({"a": (2,)}, ["b"])
    assert tied == {"a": Sent(shape=(2,)), "b": Sent(shape=None, optional=True)}
    assert len(list(checked_sent([("a", torch.ones(2)), ("b", torch.ones(7, 3))], tied))) == 2


def test_nothing_is_yielded_of_the_tensor_that_is_wrong() -> None:
    plant, _ = FAULTS["bf16 for codes"]
    weights = plant(sent("fp8_weights"))
    taken: list[str] = []

    def take(named: Iterable[tuple[str, Tensor]]) -> None:
        for name, _ in named:
            taken.append(name)

    with pytest.raises(SentError):
        take(checked_sent(weights.items(), sent_table(TABLE, "fp8_weights")))
    assert taken == list(weights)[: list(weights).index(LINEAR)]


@pytest.mark.parametrize("mode", ["fp8", "fp8_weights"])
def test_the_bytes_are_those_of_a_checkpoint(mode: str) -> None:
    ours, form = sent(mode), sent(f"{mode} as bf16")
    for name, tensor in MODEL.checkpoint_weights():
        stored = encode(name, tensor, TABLE[name], mode, None)
        for part, expected in stored.items():
            if TABLE[name].fp8:
                assert tensor_hash(ours[part]) == tensor_hash(expected), part
        if TABLE[name].fp8:
            codes, scales = stored[name], stored[name + SCALE]
            blocks = scales.repeat_interleave(128, 0)[: codes.shape[0]].repeat_interleave(128, 1)[:, : codes.shape[1]]
            exact = codes.double() * blocks.double()
            assert torch.equal(form[name], exact.bfloat16()), "the product, rounded once"
            if mode == "fp8_weights":
                assert torch.equal(form[name].double(), exact), "with power-of-two scales it is a bf16 number"


def test_each_pair_of_dtypes_has_its_form() -> None:
    assert form_for("fp32", "fp32") == form_for("bf16", "fp32") == "plain"
    assert form_for("fp8_weights", "fp8") == "fp8_weights" and form_for("fp8", "fp8") == "fp8"
    assert form_for("fp8_weights", "bf16") == "fp8_weights as bf16" and form_for("fp8", "fp32") == "fp8 as bf16"
    with pytest.raises(ValueError, match=r"engine.dtype=fp8 beside trainer.dtype=bf16"):
        form_for("bf16", "fp8")


def test_fingerprints_tell_every_bit_but_the_sign_of_zero_and_what_bf16_drops() -> None:
    weight = torch.tensor([[1.0, 0.0, 3.0]])
    same = fingerprints([("a", weight), ("b", weight.bfloat16()), ("c", torch.tensor([[1.0 + 2e-4, -0.0, 3.0]]))])
    assert same["a"] == same["b"] == same["c"]
    bias = "x.e_score_correction_bias"
    other = fingerprints([("a", weight.roll(1)), ("b", weight.T), ("a" + SCALE, weight), (bias, weight)])
    assert len({*same.values(), *other.values()}) == 4, "order and shape count; scale and bias are fp32 both"
    codes = torch.tensor([1.0, -0.0]).to(torch.float8_e4m3fn)
    (a,) = fingerprints([("a", codes)]).values()
    (b,) = fingerprints([("a", codes.float().abs().to(torch.float8_e4m3fn))]).values()
    assert a != b, "codes are bytes"
