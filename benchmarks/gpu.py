"""What a GPU adds, measured in under 8 minutes on a bare machine: torch 2.11, triton 3.6, transformers, nothing else.

    python -m benchmarks.gpu                 on a GPU; without one it says so and measures nothing
    python -m benchmarks.gpu --rehearse      the same steps in small on the CPU, where the numbers mean nothing

Four questions. Does our model compute there what transformers' does, in fp32 and bf16? Do the FP8 kernels compute what
the emulation does, and are they worth it: forward and backward of V3's matrices against bf16, quantisation included?
How much memory do log-probs over V3's vocabulary take? What does packing save? The answers are tables for RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlkit.algo.logprobs import chunked_logprobs
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.quant import backends, float8_grouped, float8_linear, matmul, quantise_tiles, quantise_weight, unusable

LIMIT_S = 420.0
"""No part begins later than this; the longest one takes less than a minute."""
TARGET = 1.5
"""What FP8 has to gain on large products, quantisation included."""
LARGE = 2**24
"""A matrix of so many numbers is large: the time of its products is not that of launching kernels."""
AGREE = 2e-3
"""Tensor cores add up 128 FP8 products in about 14 bits: kernels are further from the emulation than fp32 rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix of the model, [outputs, inputs]."""

    name: str
    outputs: int
    inputs: int

    @property
    def numbers(self) -> int:
        """Numbers in it."""
        return self.outputs * self.inputs


V3 = [
    Matrix(name="q_a_proj", outputs=1536, inputs=7168),
    Matrix(name="q_b_proj", outputs=24576, inputs=1536),
    Matrix(name="kv_a_proj_with_mqa", outputs=576, inputs=7168),
    Matrix(name="kv_b_proj", outputs=32768, inputs=512),
    Matrix(name="o_proj", outputs=7168, inputs=16384),
    Matrix(name="mlp.gate_proj", outputs=18432, inputs=7168),
    Matrix(name="mlp.down_proj", outputs=7168, inputs=18432),
    Matrix(name="experts.gate_up_proj", outputs=4096, inputs=7168),
    Matrix(name="experts.down_proj", outputs=7168, inputs=2048),
]
"""Every kind of FP8 matrix of DeepSeek-V3 (arXiv:2412.19437, section 4.2)."""
MODEL = DeepseekV3Config(
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=2816,
    moe_intermediate_size=256,
    num_hidden_layers=8,
    first_k_dense_replace=1,
    num_attention_heads=16,
    n_routed_experts=32,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    q_lora_rank=512,
    kv_lora_rank=256,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    initializer_range=0.02,
    max_position_embeddings=2048,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How much of everything is done, and where."""

    device: str
    matrices: Sequence[Matrix]
    tokens: int
    repeats: int
    model: DeepseekV3Config
    num_samples: int
    vocabulary: tuple[int, int, int]
    """T, V and D of the log-probs."""


GPU = Job(
    device="cuda", matrices=V3, tokens=8192, repeats=10, model=MODEL, num_samples=64, vocabulary=(4096, 129_280, 7168)
)
REHEARSAL = Job(
    device="cpu",
    matrices=[Matrix(name="a", outputs=192, inputs=128), Matrix(name="b", outputs=128, inputs=200)],
    tokens=130,
    repeats=1,
    model=replace(
        MODEL,
        **{"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "n_routed_experts": 8, "num_experts_per_tok": 2},
        **{"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
    ),
    num_samples=6,
    vocabulary=(64, 512, 32),
)


def seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """The median time of `repeats` runs after one that compiles and warms up."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        begin = perf_counter()
        run()
        _wait(device)
        times.append(perf_counter() - begin)
    return statistics.median(times[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """What a run takes on the GPU above what was there before; None on a CPU, which does not count."""
    if device != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, both norms over the whole tensor."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def tflops(matrix: Matrix, tokens: int, took: float) -> float:
    """Forward and backward are three products of 2 T N K operations, in 10^12 a second."""
    return 6 * tokens * matrix.numbers / took / 1e12


def parity(job: Job) -> Iterator[Sequence[str]]:
    """Log-probs of our class and transformers' on one checkpoint, and in bf16 how far rounding alone carries."""
    from transformers import AutoModelForCausalLM

    yield "dtype", "mean gap, nats", "largest", "our own bf16 against fp32, mean"
    torch.manual_seed(0)
    tokens_BT = torch.randint(job.model.vocab_size, (4, 128), device=job.device)
    with tempfile.TemporaryDirectory() as folder:
        DeepseekV3(job.model).save_checkpoint(folder, dtype="fp32")
        exact: Tensor | None = None
        for word, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            ours = DeepseekV3.from_checkpoint(folder, dtype).to(job.device)
            reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
            reference = reference.to(job.device)
            with torch.no_grad():
                found = ours(tokens_BT).float().log_softmax(-1)
                gaps = (found - reference(tokens_BT).logits.float().log_softmax(-1)).abs()
            exact = found if exact is None else exact
            own = float((found - exact).abs().mean())
            yield word, f"{float(gaps.mean()):.1e}", f"{float(gaps.max()):.1e}", f"{own:.1e}"
            if dtype == torch.float32 and not gaps.mean() <= 1e-4:
                raise RuntimeError(f"fp32: our log-probs are {float(gaps.mean()):.1e} nats from transformers'")


def kernels(job: Job) -> Iterator[Sequence[str]]:
    """Quantisers byte by byte and products against the emulation, whole tiles and partial ones."""
    yield "backend", "codes and scales", "product, tiles x blocks", "tiles x tiles"
    random = torch.Generator().manual_seed(0)
    sizes = torch.exp(2 * torch.randn(1, 704, generator=random))
    x_TK = (sizes * torch.randn(300, 704, generator=random)).bfloat16().to(job.device)
    weight_NK = torch.randn(576, 704, generator=random).bfloat16().to(job.device)
    a, blocks, tiles = (f(t, backend="emulate") for f, t in (
        (quantise_tiles, x_TK), (quantise_weight, weight_NK), (quantise_tiles, weight_NK)
    ))  # fmt: skip
    for backend in backends():
        quantiser = "triton" if backend == "scaled_mm" else backend
        pairs = ((quantise_tiles(x_TK, backend=quantiser), a), (quantise_weight(weight_NK, backend=quantiser), blocks))
        same = all(
            torch.equal(i.view(torch.uint8), j.view(torch.uint8)) for p, q in pairs for i, j in zip(p, q, strict=True)
        )
        errors = [error(matmul(*a, *b, backend=backend), matmul(*a, *b, backend="emulate")) for b in (blocks, tiles)]
        yield backend, "the same bytes" if same else "OTHER BYTES", *(f"{found:.1e}" for found in errors)
        if not same or max(errors) > AGREE:
            raise RuntimeError(f"{backend} does not compute what the emulation does")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One matrix on one backend."""

    matrix: Matrix
    backend: str
    bf16_s: float
    fp8_s: float
    errors: tuple[float, float, float]
    """Of y, dx and dW against those in bf16."""

    @property
    def gain(self) -> float:
        """How many times faster than bf16."""
        return self.bf16_s / self.fp8_s


def timed(matrix: Matrix, job: Job, backend: str) -> Timed:
    """Forward and backward of one linear layer, the weight quantised anew every time as after a step."""
    torch.manual_seed(0)
    options = {"device": job.device, "dtype": torch.bfloat16}
    x_TK = torch.randn(job.tokens, matrix.inputs, **options).requires_grad_()
    weight_NK = (0.02 * torch.randn(matrix.outputs, matrix.inputs, **options)).requires_grad_()
    dy_TN = torch.randn(job.tokens, matrix.outputs, **options)

    def step(product: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        y_TN = product(x_TK, weight_NK)
        return [y_TN.detach(), *torch.autograd.grad(y_TN, (x_TK, weight_NK), dy_TN)]

    def in_fp8(x: Tensor, weight: Tensor) -> Tensor:
        return float8_linear(x, weight, backend)

    errors = [error(ours, theirs) for ours, theirs in zip(step(in_fp8), step(F.linear), strict=True)]
    return Timed(
        matrix=matrix,
        backend=backend,
        bf16_s=seconds(lambda: step(F.linear), job.device, job.repeats),
        fp8_s=seconds(lambda: step(in_fp8), job.device, job.repeats),
        errors=(errors[0], errors[1], errors[2]),
    )


def linear_layers(job: Job) -> Iterator[Sequence[str]]:
    """Every matrix on every backend but the emulation, which is no kernel; on a CPU there is nothing else."""
    yield "matrix", "backend", "bf16 ms", "FP8 ms", "gain", "FP8 TFLOP/s", "error of y", "dx", "dW"
    compared = [name for name in backends() if name != "emulate" or job.device == "cpu"]
    gains: dict[str, list[float]] = {name: [] for name in compared}
    for matrix in job.matrices:
        for backend in compared:
            row = timed(matrix, job, backend)
            if matrix.numbers >= LARGE:
                gains[backend].append(row.gain)
            yield (
                f"{matrix.name} {matrix.outputs} x {matrix.inputs}", backend, f"{1e3 * row.bf16_s:.3f}",
                f"{1e3 * row.fp8_s:.3f}", f"{row.gain:.2f}x", f"{tflops(matrix, job.tokens, row.fp8_s):.0f}",
                *(f"{found:.1e}" for found in row.errors),
            )  # fmt: skip
            if max(row.errors) > 0.06:  # random numbers: 3.7e-2 each
                raise RuntimeError(f"{matrix.name} on {backend}: errors {row.errors} are not those of rounding to E4M3")
    for backend, found in gains.items():
        yield verdict(backend, found), *[""] * 8


def verdict(backend: str, gains: Sequence[float]) -> str:
    """Says whether the large products reach the target."""
    if not gains:
        return f"{backend}: no large matrix"
    middle = statistics.median(gains)
    reached = "reaches" if middle >= TARGET else "misses"
    return f"{backend}: median of {len(gains)} large ones {middle:.2f}x, which {reached} {TARGET}x"


def experts(job: Job) -> Iterator[Sequence[str]]:
    """Eight experts whose shares of the tokens differ, against torch's grouped product in bf16."""
    yield "experts", "bf16 ms", "FP8 ms", "gain"
    matrix = job.matrices[-1]
    torch.manual_seed(0)
    options = {"device": job.device, "dtype": torch.bfloat16}
    shares = torch.tensor([0, 1, 2, 3, 4, 5, 6, 11]) / 32
    ends_L = (shares.cumsum(0) * job.tokens).round().int().to(job.device)
    x_MK = torch.randn(job.tokens, matrix.inputs, **options).requires_grad_()
    stack = (0.02 * torch.randn(8, matrix.outputs, matrix.inputs, **options)).requires_grad_()

    dy_MN = torch.randn(job.tokens, matrix.outputs, **options)

    def plain() -> None:
        torch.autograd.grad(F.grouped_mm(x_MK, stack.transpose(1, 2), offs=ends_L), (x_MK, stack), dy_MN)

    def low() -> None:
        torch.autograd.grad(float8_grouped(x_MK, stack, ends_L), (x_MK, stack), dy_MN)

    took = [seconds(run, job.device, job.repeats) for run in (plain, low)]
    yield f"8 x {matrix.outputs} x {matrix.inputs}", *(f"{1e3 * t:.3f}" for t in took), f"{took[0] / took[1]:.2f}x"


def logprob_memory(job: Job) -> Iterator[Sequence[str]]:
    """Forward and backward to the hidden states, in chunks and at once; the head is frozen in both."""
    yield "log-probs", "peak MiB", "share"
    (rows, vocabulary, width), peaks = job.vocabulary, []
    torch.manual_seed(0)
    options = {"device": job.device, "dtype": torch.bfloat16}
    hidden_TD = torch.randn(rows, width, **options).requires_grad_()
    head_VD = 0.02 * torch.randn(vocabulary, width, **options)
    tokens_T = torch.randint(vocabulary, (rows,), device=job.device)
    for name, most in (("at once", rows * vocabulary), ("in chunks", 2**24)):

        def run(most: int = most) -> None:
            logprobs_T, _ = chunked_logprobs(hidden_TD, head_VD, tokens_T, max_logits=most)
            torch.autograd.grad(logprobs_T.sum(), hidden_TD)

        peaks.append(peak_bytes(run, job.device))
        yield f"{name}, T={rows:,} V={vocabulary:,}", *shares(peaks)


def shares(peaks: Sequence[int | None]) -> tuple[str, str]:
    """The last peak in MiB, and its share of the first."""
    first, last = peaks[0], peaks[-1]
    return ("-", "-") if first is None or last is None else (f"{last / 2**20:,.0f}", f"1/{first / last:.1f}")


def sample_lengths(num: int) -> list[int]:
    """Lengths as completions have them: most are short, a few long; from 16 to 1,024 tokens."""
    drawn = torch.exp(5 + torch.randn(num, generator=torch.Generator().manual_seed(0)))
    return [int(length) for length in drawn.clamp(16, 1024)]


def packing(job: Job) -> Iterator[Sequence[str]]:
    """The same samples end to end and padded to the longest, forward and backward in bf16."""
    yield "layout", "places per token", "real tokens/s"
    lengths = sample_lengths(job.num_samples)
    torch.manual_seed(0)
    model = DeepseekV3(job.model).to(job.device, torch.bfloat16)
    took = []
    for name, laid in (("packed", lengths), ("padded", [max(lengths)] * len(lengths))):
        tokens_T = torch.randint(job.model.vocab_size, (sum(laid),), device=job.device)

        def run(tokens_T: Tensor = tokens_T, laid: Sequence[int] = laid) -> None:
            model.hidden(tokens_T, laid).float().square().mean().backward()
            model.zero_grad()

        took.append(seconds(run, job.device, max(1, job.repeats // 3)))
        yield name, f"{sum(laid) / sum(lengths):.2f}", f"{sum(lengths) / took[-1]:,.0f}"
    yield f"packed is {took[1] / took[0]:.2f}x as fast", "", ""


PARTS: dict[str, Callable[[Job], Iterator[Sequence[str]]]] = {
    "parity with transformers": parity,
    "FP8 kernels against the emulation": kernels,
    "FP8 linear layers, forward and backward": linear_layers,
    "FP8 experts, forward and backward": experts,
    "memory of log-probs": logprob_memory,
    "packing": packing,
}


def measure(job: Job, limit_s: float = LIMIT_S) -> None:
    """Run all parts and print their tables as they come; what would begin after `limit_s` is left out and named."""
    begin = perf_counter()
    for title, part in PARTS.items():
        if perf_counter() - begin > limit_s:
            print(f"\n{title}: left out, {limit_s:.0f} s are over")
            continue
        print(f"\n**{title}**\n", flush=True)
        for number, row in enumerate(part(job)):
            print(f"| {' | '.join(row)} |" + ("\n" + "|---" * len(row) + "|" if number == 0 else ""), flush=True)
    for backend in ("scaled_mm", "triton"):
        if (why := unusable(backend)) is not None:
            print(f"\n{backend} was not measured: {why}")
    print(f"\n{perf_counter() - begin:.0f} s in all")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure on the GPU and print tables for RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="the same steps in small, on the CPU")
    args = parser.parse_args(argv)
    if args.rehearse:
        print("a rehearsal on the CPU: the numbers mean nothing")
        measure(REHEARSAL)
    elif not torch.cuda.is_available():
        print("skipped: torch finds no GPU, and nothing was measured; --rehearse runs the same steps on the CPU")
    else:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, backends {', '.join(backends())}")
        measure(GPU)


if __name__ == "__main__":
    main()
