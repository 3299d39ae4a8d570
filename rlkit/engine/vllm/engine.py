"""vLLM behind the Engine protocol; in the only package that imports vllm.

vLLM runs inside the caller's process: no engine process of its own, weights arrive by reference. With `tensor_parallel`
above 1 this process plans the steps and worker processes below it compute them (`rlkit.engine.vllm.workers`). vLLM is
imported when an engine is made, not before, because it reads its environment while it is imported.

The defects of its CPU build, and the way round each, are in `rlkit.engine.vllm.start`.
What is not covered: an engine over several machines, images.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.config import LoraConfig
from rlkit.data.tokenizer import read_decoder
from rlkit.engine.base import completion_text, rollout_seed
from rlkit.engine.examination import Examination
from rlkit.engine.vllm.adapter import adapter_arguments, adapter_request, replace_adapter
from rlkit.engine.vllm.audit import live_prints
from rlkit.engine.vllm.blocks import start_watching, stop_watching
from rlkit.engine.vllm.options import ALWAYS, check_options, engine_arguments
from rlkit.engine.vllm.process import begin_here, forget_shared_names
from rlkit.engine.vllm.products import Tally, router_of, watch_drafter, watch_products
from rlkit.engine.vllm.reload import forget_packed_experts, heal, reload_drafter
from rlkit.engine.vllm.start import (
    draft_arguments,
    import_vllm,
    mend,
    platform_arguments,
    start_up,
    use_threads,
)
from rlkit.engine.vllm.workers import death, load_into_workers
from rlkit.engine.whole import WholeLoads
from rlkit.errors import PartDiedError
from rlkit.model.files.end_tokens import end_tokens
from rlkit.model.files.sent import Sent, checked_sent
from rlkit.types import Group, Prompt, Rollout, Sampling, Weights
from rlkit.watch.progress import Progress, silent

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_SHARED = ("embed_tokens.weight", "shared_head.head.weight")


class VllmEngine:
    """Samples with vLLM; calls may come from any thread, one at a time (later ones wait).

    The same weights and the same requests in the same order give the same tokens and log-probs, bit for bit, in any
    process with the same number of threads: every rollout has its own seed, and no prefix is cached.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        dtype: str = "float32",
        expected: Mapping[str, Sent] | None = None,
        max_model_len: int,
        max_num_seqs: int = 256,
        kv_cache_gib: float = 1,
        gpu_memory_utilization: float = 0.6,
        threads: int,
        speculative_tokens: int = 0,
        lora: LoraConfig | None = None,
        tensor_parallel: int = 1,
        options: Mapping[str, Any] | None = None,
        progress: Progress = silent,
        seed: int = 0,
    ) -> None:
        """Starts vLLM on a checkpoint folder (config.json, *.safetensors, tokenizer.json).

        `dtype` is "float32", "bfloat16" or "fp8", which needs a checkpoint in block FP8. `expected` is what every load
        must bring, tensor by tensor; None lets vLLM take what it gets. `kv_cache_gib` and `threads` (of OpenMP, shared
        by the workers) count on the CPU, `gpu_memory_utilization` (a share) on CUDA. With `lora`, whose targets are
        names of layers, `load` takes an adapter and the weights stay those of the checkpoint. `tensor_parallel` workers
        hold a slice of every layer each; `options` are further arguments of vLLM's own.
        Raises RuntimeError if vllm cannot be imported, UserError if the checkpoint names no end token or has no
        tokenizer.json, or for an option that rlkit sets itself.
        """
        check_options(options or {}, cuda=torch.cuda.is_available(), max_model_len=max_model_len)
        self._lock = threading.Lock()
        self._threads, self._max_model_len = threads, max_model_len
        self._whole, self._finished, self._drafts_before = WholeLoads(), 0, (0, 0)
        self._progress = progress
        self._cuda = torch.cuda.is_available()
        self._speculative = speculative_tokens > 0
        self._lora, self._expected = lora, expected
        self._parallel = tensor_parallel > 1
        self._adapter: Any = None  # what requests name it by; none has been loaded yet
        self._ends = end_tokens(checkpoint)
        self._owns_process_group = not torch.distributed.is_initialized()
        self._decode = read_decoder(checkpoint)
        with self._lock, use_threads(threads), start_up(self._cuda, max(1, threads // tensor_parallel)):
            self._vllm = import_vllm()
            if not self._cuda:
                mend(drafts=self._speculative, adapter=lora is not None, fp8=dtype == "fp8")
            arguments = {
                "model": str(checkpoint),
                "dtype": "bfloat16" if dtype == "fp8" else dtype,
                "max_model_len": max_model_len,
                "max_num_seqs": max_num_seqs,
                "seed": seed,
                "disable_log_stats": not self._speculative,  # the statistics count the drafts
                "speculative_config": draft_arguments(speculative_tokens),
                "tensor_parallel_size": tensor_parallel,
                "distributed_executor_backend": "mp" if self._parallel else "uni",
                **ALWAYS,
                **(adapter_arguments(lora) if lora else {}),
                **platform_arguments(self._cuda, max_model_len, kv_cache_gib, gpu_memory_utilization),
            }
            self._start(engine_arguments(self._vllm, arguments, options or {}))

    def _start(self, arguments: Any) -> None:
        if self._parallel:
            begin_here(self._cuda)
        self._engine = self._vllm.LLMEngine.from_engine_args(arguments)
        if self._parallel and not self._cuda:
            self._engine.collective_rpc(forget_shared_names)
        self._vocab_size = self._engine.model_config.get_vocab_size()
        # The first request makes vLLM import and log what it does not at start-up.
        list(self._run([((0,), self._params(max_tokens=1, temperature=0.0))]))
        # Nothing that start-up says below ERROR is news; a warning later may be (a weight that was not loaded).
        logger = logging.getLogger("vllm")
        logger.setLevel(min(logger.level, logging.WARNING))

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        """Draws `n` completions for each prompt; a group comes as soon as its last rollout is finished.

        Log-probs are those of the distribution drawn from (temperature and top_p applied); at temperature 0 they are
        those of temperature 1. Raises ValueError if a prompt leaves no room for `max_new_tokens` or has an unknown
        token id.
        """
        for prompt in prompts:
            self._check(f"prompt {prompt.id!r}", prompt.tokens, sampling.max_new_tokens)
        return self._generate(prompts, n, sampling)

    def _generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        seeds = [rollout_seed(sampling.seed, prompt.id, i) for prompt in prompts for i in range(n)]
        drawn = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "logprobs": 0,
            "stop_token_ids": sorted(self._ends),
        }
        with self._at_work():
            self._drafts_before = self._drafts_ever()
            tokens = (prompt.tokens for prompt in prompts for _ in range(n))
            requests = [(t, self._params(seed=s, **drawn)) for t, s in zip(tokens, seeds, strict=True)]
            found: dict[int, dict[int, Rollout]] = {row: {} for row in range(len(prompts))}
            with self._progress("sampling", len(requests), "rollouts") as bar:
                for i, output in self._run(requests):
                    bar.set(self._finished)
                    row, place = divmod(i, n)
                    found[row][place] = self._rollout(output.outputs[0], seeds[i])
                    if len(found[row]) == n:
                        finished = found.pop(row)  # what is handed over is not kept: a call may have millions of tokens
                        yield Group(prompt=prompts[row], rollouts=tuple(finished[place] for place in range(n)))

    def finished(self) -> int:
        """Counts the rollouts finished in the running (else the last) call of `generate`; safe from another thread."""
        return self._finished

    def drafts(self) -> tuple[int, int]:
        """Counts the tokens drafted and accepted since the last `generate` began; (0, 0) without drafts."""
        proposed, accepted = (now - then for now, then in zip(self._drafts_ever(), self._drafts_before, strict=True))
        return proposed, accepted

    def _drafts_ever(self) -> tuple[int, int]:
        if not self._speculative:
            return (0, 0)
        counters = {metric.name: metric for metric in self._engine.get_metrics()}
        proposed, accepted = (
            int(counters[f"vllm:spec_decode_num_{what}_tokens"].value) for what in ("draft", "accepted")
        )
        return proposed, accepted

    def load(self, weights: Weights, version: int) -> None:
        """Replaces all weights, given under their checkpoint names; rollouts made from now on carry `version`.

        An engine with `lora` replaces the adapter, given under the keys of peft's files. Raises SentError for a tensor
        that is not as expected; after any error the engine is unusable until a whole load.
        """
        with self._at_work(), self._whole.loading(version):
            if self._lora is not None:
                self._engine.collective_rpc(replace_adapter, args=(list(weights), self._lora))
                self._adapter = adapter_request()
            else:
                self._reload(weights)

    def _reload(self, weights: Weights) -> None:
        if self._expected is not None:
            weights = checked_sent(weights, self._expected)
        if self._parallel:
            load_into_workers(self._engine.collective_rpc, weights, cuda=self._cuda)
            return
        self._engine.apply_model(heal)
        if not self._cuda:
            # The packed copy of the experts is what runs. A reload writes the plain weights and packs them only where
            # no packed copy is known, so the first copy has to be forgotten or it goes on sampling.
            self._engine.apply_model(forget_packed_experts)
        drafter: list[tuple[str, Tensor]] = []
        iterator = self._set_apart(weights, drafter)
        self._engine.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": iterator, "is_checkpoint_format": True}
        )
        if self._speculative:  # reload_weights leaves the MTP modules as they are
            self._engine.collective_rpc(reload_drafter, args=(drafter, self._cuda))

    def _set_apart(self, weights: Weights, drafter: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yields all weights, without gradient; those of the MTP modules also go into `drafter` if they are used."""
        for name, tensor in weights:
            depth = self._depth(name)
            # The modules share one embedding and one head, which vLLM's loader knows by the names of the first.
            if self._speculative and (depth == 1 or (depth > 1 and not name.endswith(_SHARED))):
                drafter.append((name, tensor.detach()))
            yield name, tensor.detach()

    def _depth(self, name: str) -> int:
        """Returns which MTP module a weight belongs to, 1 for the first; below that it is one of the main model."""
        layer = _LAYER.match(name)
        return int(layer[1]) - self._engine.model_config.hf_config.num_hidden_layers + 1 if layer else 0

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Computes log p(token_t | tokens before t) at temperature 1, for t = 1..len-1 of each sequence, in nats.

        Raises ValueError if a sequence is not shorter than `max_model_len` or has an unknown token id.
        """
        for i, sequence in enumerate(sequences):
            self._check(f"sequence {i}", sequence, 1)
        with self._at_work():
            params = self._params(max_tokens=1, temperature=0.0, prompt_logprobs=0)
            outputs = dict(self._run([(sequence, params) for sequence in sequences]))
        return [list(outputs[i].prompt_logprobs.logprobs) for i in range(len(sequences))]

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Runs one sequence and returns the output of every block, before it is added to the residual stream.

        Keys `model.layers.{i}.self_attn`, `model.layers.{i}.mlp` in order, last `model.norm`; values [T, D] in fp32.
        """
        self._check("sequence", tokens, 1)
        with self._at_work():
            self._engine.collective_rpc(start_watching)
            try:
                list(self._run([(tokens, self._params(max_tokens=1, temperature=0.0))]))
            finally:
                chunks, *_ = self._engine.collective_rpc(stop_watching)
        # A long sequence is run in chunks; a captured graph may pad the last one.
        return {name: torch.cat(outputs_TD)[: len(tokens)] for name, outputs_TD in chunks.items()}

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        """Fingerprints all tensors that the engine computes with, and repeats the products that the sequences make."""
        for i, sequence in enumerate(sequences):
            self._check(f"sequence {i}", sequence, 1)
        tallies: dict[str, Tally] = {}
        with self._at_work():
            stops = self._engine.apply_model(lambda model: watch_products(model, tallies, quantised=self._cuda))
            if self._speculative:
                stops += self._engine.collective_rpc(watch_drafter, args=(tallies, self._cuda))
            try:
                params = self._params(max_tokens=1, temperature=0.0)
                list(self._run([(sequence, params) for sequence in sequences]))
            finally:
                for stop in stops:
                    stop()
            return Examination(
                prints=self._engine.collective_rpc(live_prints, args=(self._speculative,))[0],
                unused=frozenset(
                    name
                    for name, sent in (self._expected or {}).items()
                    if sent.optional or (self._depth(name) > 0 and not self._speculative)
                ),
                products={name: tally.product() for name, tally in tallies.items() if tally.outputs},
                unseen=tuple(name for name, tally in tallies.items() if not tally.outputs),
                chosen={router_of(name): torch.cat(tally.chosen) for name, tally in tallies.items() if tally.chosen},
                quantises_activations=self._cuda,
            )

    def replicas(self) -> tuple[VllmEngine]:
        """Returns this engine: there is one copy of the model."""
        return (self,)

    def close(self) -> None:
        """Stops vLLM and frees its memory; the process can then start another engine."""
        with self._lock:
            # Workers that take long to end are no news: they are then ended.
            logging.getLogger("vllm").setLevel(logging.ERROR)
            self._engine.engine_core.shutdown()
            if self._owns_process_group:
                import_module("vllm.distributed").cleanup_dist_env_and_memory()
            del self._engine

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Lets one call at a time use the engine, with its threads; PartDiedError if a worker has died meanwhile."""
        with self._lock, use_threads(self._threads):
            try:
                yield
            except Exception as error:
                if not self._parallel:
                    raise
                workers = [worker.proc for worker in self._engine.model_executor.workers]
                if (died := death(workers, error)) is not None:
                    raise PartDiedError(died) from error
                raise

    def _params(self, **sampling: Any) -> Any:
        output = self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        return self._vllm.SamplingParams(detokenize=False, flat_logprobs=True, output_kind=output, **sampling)

    def _run(self, requests: Sequence[tuple[Sequence[int], Any]]) -> Iterator[tuple[int, Any]]:
        """Drives vLLM until every request is done; yields each request's number and output as it finishes.

        Raises HalfLoadedError, as all that asks the model does through it, after a load that broke off.
        """
        self._whole.check()
        self._finished = 0
        prompts = self._engine.renderer.render_cmpl([{"prompt_token_ids": list(tokens)} for tokens, _ in requests])
        waiting: list[str] = []
        try:
            for i, (prompt, (_, params)) in enumerate(zip(prompts, requests, strict=True)):
                waiting.append(self._engine.add_request(str(i), prompt, params, lora_request=self._adapter))
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    self._finished += 1
                    yield int(output.request_id), output
        finally:
            # After an interrupt, no leftover may join (and change) the next call.
            if self._finished < len(requests) and not (self._parallel and self._engine.model_executor.is_failed):
                self._engine.abort_request(waiting, internal=True)

    def _rollout(self, completion: Any, seed: int) -> Rollout:
        tokens = tuple(completion.token_ids)
        return Rollout(
            tokens=tokens,
            logprobs=tuple(completion.logprobs.logprobs),
            text=completion_text(tokens, self._ends, self._decode),
            finish_reason=completion.finish_reason,
            weight_version=self._whole.version,
            seed=seed,
        )

    def _check(self, what: str, tokens: Sequence[int], num_new: int) -> None:
        if len(tokens) + num_new > self._max_model_len:
            raise ValueError(
                f"{what} has {len(tokens)} tokens; with {num_new} new ones that is more than "
                f"max_model_len={self._max_model_len}: raise max_model_len or leave it out"
            )
        # vLLM pads its embedding table and would read the padding.
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            raise ValueError(
                f"{what} has token ids from {min(tokens)} to {max(tokens)}, but the model's vocab_size is "
                f"{self._vocab_size}: use the tokenizer of this checkpoint"
            )
