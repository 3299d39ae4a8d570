"""What runs in vLLM's worker processes, of which an engine with `tensor_parallel` = K > 1 has K.

Every worker holds a K-th of the heads, of each expert's width and of the vocabulary, and all compute the same step
together. vLLM can start them in two ways. We take its "mp": workers are children of the process that holds the engine.
So an engine of any width stays one actor, Ray gives it K CPUs or GPUs of one machine, where the sums over the workers
are fast, and whoever ends that process ends the workers. Its way with Ray starts K actors more inside ours, which would
have to be placed and ended beside it, and refuses CPUs. What is not covered: an engine over several machines.

Weights come in three calls, which all workers answer together: `begin_load`, `load_bucket` for each bucket, `end_load`.
Each worker takes its slices out of the bucket, so that no process ever holds the model, and none more than a bucket
beside its own share and the layer that is not yet whole.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from rlkit.engine.vllm.reload import forget_packed_experts, heal
from rlkit.engine.vllm.shared import SharedBucket, shared
from rlkit.model.files.weights import WORKER_PIECE_BYTES, in_buckets
from rlkit.types import Weights

DEATH_S = 2.0
"""How long to look for a dead worker after an error: the others fail in the middle of a sum with it, and may say so
before the system does."""


def death(workers: Sequence[BaseProcess], error: Exception) -> str | None:
    """Says which of the workers has died and how, where an error comes from that; None while all are alive."""
    dead = connection.wait([worker.sentinel for worker in workers], DEATH_S if isinstance(error, RuntimeError) else 0)
    ended = [worker for worker in workers if worker.sentinel in dead]
    if not ended:
        return None
    # vLLM ends the others when one has died: they leave with 0, or at SIGTERM.
    own = [worker for worker in ended if worker.exitcode not in (0, -signal.SIGTERM)]
    first = (own or ended)[0]
    how = f"exit code {first.exitcode}"
    if first.exitcode is not None and first.exitcode < 0:
        how = signal.Signals(-first.exitcode).name
        how += ", as the system does it when memory runs out" if first.exitcode == -signal.SIGKILL else ""
    return f"worker {workers.index(first) + 1} of {len(workers)}, process {first.pid}, has died ({how})"


def load_into_workers(call: Callable[..., list[Any]], weights: Weights, *, cuda: bool) -> None:
    """Replaces all weights in all workers, which `call` asks together; it runs in the engine's own process.

    Raises RuntimeError if a weight is missing.
    """
    call(begin_load, args=(cuda,))
    for bucket in in_buckets(weights, WORKER_PIECE_BYTES):
        with shared(bucket) as sent:
            call(load_bucket, args=(sent,))
    if missing := call(end_load)[0]:
        raise RuntimeError(f"the weights sent to vLLM lack {len(missing)} of its own, of which {missing[0]} is one")


def begin_load(worker: Any, cuda: bool) -> None:
    """Makes the model of one worker ready for new weights; what an interrupted load has left is taken back first."""
    model = worker.get_model()
    heal(model)
    if not cuda:
        forget_packed_experts(model)
    worker.loaded_names = set()
    import_module("vllm.model_executor.model_loader.reload").initialize_layerwise_reload(model)


def load_bucket(worker: Any, bucket: SharedBucket) -> None:
    """Takes this worker's slices out of one bucket."""
    with _current_config(worker):
        worker.loaded_names |= worker.get_model().load_weights(bucket.tensors())


def end_load(worker: Any) -> list[str]:
    """Puts the new weights to use; returns the names of those that never came."""
    model, runner = worker.get_model(), worker.model_runner
    with _current_config(worker):
        import_module("vllm.model_executor.model_loader.reload").finalize_layerwise_reload(model, runner.model_config)
    runner.reset_lora_state()
    runner.reset_encoder_cache()
    runner.reset_mm_cache()
    return sorted({name for name, _ in model.named_parameters()} - worker.loaded_names)


def _current_config(worker: Any) -> Any:
    return import_module("vllm.config").set_current_vllm_config(worker.vllm_config)
