"""vLLM with its model split over two worker processes: the numbers of one after every sync, and no leftovers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from rlkit.engine.vllm import VllmEngine, workers
from rlkit.errors import PartDiedError
from rlkit.model.files.weights import in_buckets
from rlkit.parity import ParityError, check_parity, gate_sequences
from tests.engine.test_vllm import PROMPTS, ROOT, SAMPLING, bits, drawn
from tests.hf_reference import VOCAB, HfTrainer, make_model, randomise, save_checkpoint

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
"""In nats; the parity gate's own limit is ten times that."""
SEQUENCES = gate_sequences(VOCAB, 6, 48, seed=0, prompts=[p.tokens for p in PROMPTS])
SETTINGS = {"max_model_len": 128, "max_num_seqs": 64, "kv_cache_gib": 0.25, "threads": 1}


@pytest.fixture(scope="module")
def trainer() -> HfTrainer:
    return HfTrainer(make_model())


@pytest.fixture(scope="module")
def checkpoint(trainer: HfTrainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(trainer.model, folder)
    return folder


@pytest.fixture(scope="module")
def split(checkpoint: Path) -> Iterator[VllmEngine]:
    children = set(psutil.Process().children(recursive=True))
    engine = VllmEngine(checkpoint, tensor_parallel=2, **SETTINGS)
    started = [child for child in psutil.Process().children(recursive=True) if child not in children]
    assert sum("Worker" in child.cmdline()[0] for child in started) == 2
    yield engine
    engine.close()
    left = [child for child in psutil.Process().children(recursive=True) if child not in children]
    left = [child for child in left if child.status() != psutil.STATUS_ZOMBIE]  # ended; waited for by nobody yet
    assert not [child for child in left if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(checkpoint, **SETTINGS)
    yield engine
    engine.close()


def gap(ours: list[list[float]], theirs: list[list[float]]) -> float:
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def halting(trainer: HfTrainer, after: int) -> Iterator[tuple[str, Tensor]]:
    for place, named in enumerate(trainer.weights()):
        if place == after:
            raise ConnectionError("the sender is gone")
        yield named


def test_two_workers_compute_what_one_process_does_after_start_and_every_reload(split, whole, trainer) -> None:
    assert 0 < gap(split.logprobs(SEQUENCES), whole.logprobs(SEQUENCES)) <= TOLERANCE
    stale = split.logprobs(SEQUENCES)
    for version in range(1, 6):
        randomise(trainer.model, version)
        for engine in (split, whole):
            engine.load(trainer.weights(), version)
        fresh = split.logprobs(SEQUENCES)
        assert gap(fresh, whole.logprobs(SEQUENCES)) <= TOLERANCE < gap(fresh, stale)
        check_parity(split, trainer, SEQUENCES, TOLERANCE)
        stale = fresh


def test_the_blocks_are_those_of_the_trainer_and_a_wrong_one_is_named(split, trainer) -> None:
    split.load(trainer.weights(), 1)
    ours, theirs = split.trace(SEQUENCES[0]), trainer.trace(SEQUENCES[0])
    assert list(ours) == list(theirs)
    for name, ours_TD in ours.items():
        torch.testing.assert_close(ours_TD, theirs[name], rtol=1e-4, atol=1e-4)
    name = "model.layers.1.mlp.experts.5.down_proj.weight"
    split.load(((sent, tensor.flip(0) if sent == name else tensor) for sent, tensor in trainer.weights()), 2)
    with pytest.raises(ParityError, match=r"First block that differs: model\.layers\.1\.mlp "):
        check_parity(split, trainer, SEQUENCES, 1e-4)


def test_weights_that_come_in_many_buckets_are_the_same_bits(split, trainer, monkeypatch) -> None:
    split.load(trainer.weights(), 1)
    expected = split.logprobs(SEQUENCES)
    sizes = []

    def small(weights: object, _most: int) -> Iterator[object]:
        for bucket in in_buckets(weights, 20_000):  # type: ignore[arg-type]
            sizes.append(sum(tensor.nbytes for _, tensor in bucket))
            yield bucket

    monkeypatch.setattr(workers, "in_buckets", small)
    randomise(trainer.model, 9)
    split.load(trainer.weights(), 2)
    assert len(sizes) > 20
    assert split.logprobs(SEQUENCES) != expected
    check_parity(split, trainer, SEQUENCES, TOLERANCE)


def test_a_load_that_broke_half_way_leaves_no_trace_in_the_next_one(split, trainer, monkeypatch) -> None:
    monkeypatch.setattr(workers, "WORKER_PIECE_BYTES", 20_000)
    split.load(trainer.weights(), 1)
    expected = split.logprobs(SEQUENCES)
    randomise(trainer.model, 10)
    for after in (3, 40, 70):
        with pytest.raises(ConnectionError, match="the sender is gone"):
            split.load(halting(trainer, after), 2)
    split.load(trainer.weights(), 3)
    assert split.logprobs(SEQUENCES) != expected
    check_parity(split, trainer, SEQUENCES, TOLERANCE)


def test_a_weight_that_was_not_sent_is_named(split, trainer) -> None:
    name = "model.layers.2.mlp.gate.e_score_correction_bias"
    with pytest.raises(RuntimeError, match=r"lack 1 of its own, of which model\.layers\.2\.mlp\.gate\.e_score"):
        split.load(((sent, tensor) for sent, tensor in trainer.weights() if sent != name), 2)
    split.load(trainer.weights(), 3)
    check_parity(split, trainer, SEQUENCES, TOLERANCE)


def test_rollouts_are_the_same_bits_in_a_fresh_process_which_leaves_nothing_when_it_is_killed(
    split, checkpoint
) -> None:
    split.load(HfTrainer(make_model()).weights(), 1)
    expected = bits(drawn(split, PROMPTS, 4, SAMPLING))
    assert bits(drawn(split, PROMPTS, 4, SAMPLING)) == expected
    program = (
        "import json, os, sys; from pathlib import Path; from rlkit.engine.vllm import VllmEngine\n"
        "from tests.engine.test_vllm import PROMPTS, SAMPLING, bits, drawn\n"
        "if __name__ == '__main__':\n"
        f"    engine = VllmEngine(Path(sys.argv[1]), tensor_parallel=2, **{SETTINGS})\n"
        "    print(json.dumps(bits(drawn(engine, PROMPTS, 4, SAMPLING))), flush=True)\n"
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    shared = set(os.listdir("/dev/shm"))
    # The call returns when nobody holds its pipes any more, the workers included.
    run = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint)], cwd=ROOT, capture_output=True, text=True, timeout=800
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert json.loads(run.stdout) == json.loads(json.dumps(expected))
    # Python's own bookkeeper says what it has taken away; nobody else says anything.
    assert all("resource_tracker" in line or "warnings.warn" in line for line in run.stderr.splitlines()), run.stderr
    assert not [name for name in os.listdir("/dev/shm") if name not in shared and name.startswith("vllm")]


def test_a_worker_that_dies_ends_the_call_and_is_named(split, trainer) -> None:
    """The last test of this file: it leaves the engine unusable."""
    victim = next(child for child in psutil.Process().children() if "Worker_TP1" in child.cmdline()[0])
    victim.kill()
    said = rf"^worker 2 of 2, process {victim.pid}, has died \(SIGKILL, as the system does it when memory runs out\)$"
    for ask in (
        lambda: split.logprobs(SEQUENCES),
        lambda: list(split.generate(PROMPTS, 1, SAMPLING)),
        lambda: split.load(trainer.weights(), 9),
        lambda: split.trace(SEQUENCES[0]),
    ):
        with pytest.raises(PartDiedError, match=said):
            ask()
