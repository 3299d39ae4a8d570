"""Weights on their way to an engine: the form in which it takes them, and a check of every tensor before it does.

The forms, all made by the one quantiser of checkpoints:
    plain                                 as the trainer keeps them: trainer and engine compute in high precision
    fp8, fp8_weights                      codes and scales, for an engine in FP8
    fp8 as bf16, fp8_weights as bf16      what these codes stand for: the trainer computes in FP8 and the engine high
The scales of "fp8_weights" are powers of two, with which code * scale is a bf16 number: whoever multiplies it out, a
kernel with fp32 scales or one that rounds the weight to bf16 first, gets the same matrix.

The check exists because an engine accepts almost anything. vLLM takes a scale of the wrong shape, a transposed one, a
bf16 matrix where codes belong and a load in which tensors are missing, says nothing and samples from another model.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.model.files.folder import SCALE
from rlkit.model.files.names import Place
from rlkit.model.files.verify import tensor_hash
from rlkit.quant import quantise_weight
from rlkit.quant.fp8 import E4M3, FLOAT8, block_grid, dequantise_blocks

AS_BF16 = " as bf16"
FORMS = ("plain", *FLOAT8, *(f"{mode}{AS_BF16}" for mode in FLOAT8))
ADAPTER = "adapter"
"""What is asked for in the place of a form where the engine keeps the base's weights: LoRA's matrices alone, under the
keys of peft's files."""
HIGH = (torch.float32, torch.bfloat16)
"""The dtypes of what is not in FP8; an engine casts them to its own."""
BIAS = "e_score_correction_bias"
"""Ending of the router's correction bias, which is fp32 in every form: bf16 swallows its steps."""


class SentError(ValueError):
    """A tensor on its way to an engine is not what the engine needs; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Says what a tensor looks like on its way."""

    shape: tuple[int, ...] | None
    """None takes any."""
    dtypes: tuple[torch.dtype, ...] = HIGH
    optional: bool = False
    """It is a copy of another tensor, and may be left out."""


def form_for(trainer_dtype: str, engine_dtype: str) -> str:
    """Returns the form in which an engine takes the weights of a trainer, by the words of their `dtype`.

    Raises ValueError for an engine in FP8 beside a trainer that is not: what the engine computes with would be no
    weights of the trainer's.
    """
    if trainer_dtype in FLOAT8:
        return trainer_dtype if engine_dtype == "fp8" else f"{trainer_dtype}{AS_BF16}"
    if engine_dtype == "fp8":
        raise ValueError(f"engine.dtype=fp8 beside trainer.dtype={trainer_dtype}")
    return "plain"


def in_form(
    weights: Iterable[tuple[str, Tensor]], fp8_names: Container[str], form: str
) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights in one of `FORMS`; a scale follows its codes. Only those of `fp8_names` change.

    FP8 is made from the weight rounded to bf16, as everywhere, so that all ways there give the same bytes.
    """
    for name, tensor in weights:
        if form == "plain" or name not in fp8_names:
            yield name, tensor.float() if form in FLOAT8 and name.endswith(BIAS) else tensor
            continue
        weight_NK = tensor.detach().to(torch.bfloat16)
        mode = form.removesuffix(AS_BF16)
        codes_NK, scales = quantise_weight(weight_NK, powers_of_two=mode == "fp8_weights")
        if form != mode:
            yield name, dequantise_blocks(codes_NK, scales, torch.bfloat16)
            continue
        yield name, codes_NK
        yield name + SCALE, scales


def form_names(names: Iterable[str], fp8_names: Container[str], form: str) -> Iterator[str]:
    """Yields the names under which `in_form` gives the weights of these names."""
    for name in names:
        yield name
        if form in FLOAT8 and name in fp8_names:
            yield name + SCALE


def plain_table(published: Mapping[str, tuple[int, ...]], tied: Iterable[str] = ()) -> dict[str, Sent]:
    """Returns what an engine is sent in plain form, from names and shapes; a `tied` tensor may be sent as well."""
    spare = {name: Sent(shape=None, optional=True) for name in tied}
    return spare | {name: Sent(shape=tuple(shape)) for name, shape in published.items()}


def sent_table(table: Mapping[str, Place], form: str) -> dict[str, Sent]:
    """Returns what an engine is sent in one of `FORMS`: every name with its shape and the dtypes that it may have."""
    expected: dict[str, Sent] = {}
    for name, place in table.items():
        if form not in FLOAT8:
            expected[name] = Sent(shape=place.shape, optional=place.copy)
        elif place.fp8:
            expected[name] = Sent(shape=place.shape, dtypes=(E4M3,))
            expected[name + SCALE] = Sent(shape=block_grid(place.shape), dtypes=(torch.float32,))
        else:
            dtypes = (torch.float32,) if name.endswith(BIAS) else HIGH
            expected[name] = Sent(shape=place.shape, dtypes=dtypes, optional=place.copy)
    return expected


def checked_sent(weights: Iterable[tuple[str, Tensor]], expected: Mapping[str, Sent]) -> Iterator[tuple[str, Tensor]]:
    """Yields the same weights again, each after it has been held against `expected`.

    Raises SentError naming the first tensor that is unknown, doubled, of another shape or dtype, or, at the end,
    missing. Of the tensor it stops at nothing is yielded.
    """
    seen: set[str] = set()
    for name, tensor in weights:
        if name not in expected:
            raise SentError(f"{name}: sent to the engine, but its model has no such tensor")
        if name in seen:
            raise SentError(f"{name}: sent to the engine twice in one load")
        wanted = expected[name]
        if wanted.shape is not None and tuple(tensor.shape) != wanted.shape:
            raise SentError(f"{name}: sent with shape {tuple(tensor.shape)}, but the engine's is {wanted.shape}")
        if tensor.dtype not in wanted.dtypes:
            found, words = _word(tensor.dtype), " or ".join(map(_word, wanted.dtypes))
            raise SentError(f"{name}: sent as {found}, but the engine computes with {words} there")
        seen.add(name)
        yield name, tensor
    missing = [name for name, sent in expected.items() if name not in seen and not sent.optional]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise SentError(f"{missing[0]}: not sent{more}; the engine would go on with the tensor it had before")


def fingerprints(weights: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Returns the SHA-256 of every tensor as an engine in FP8 holds it: what is high is rounded to bf16 first.

    Codes, scales and the routers' correction biases are held as they are sent.
    """
    return {name: _fingerprint(name, tensor) for name, tensor in weights}


def _fingerprint(name: str, tensor: Tensor) -> str:
    scale_or_bias = name.endswith((BIAS, SCALE))
    # Multiplying a unit matrix gives a weight of -0.0 back as 0.0; adding 0 makes them one.
    held = tensor if scale_or_bias or tensor.dtype not in HIGH else tensor.to(torch.bfloat16) + 0.0
    return f"{_word(held.dtype)} {list(held.shape)} {tensor_hash(held.detach().cpu())}"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
