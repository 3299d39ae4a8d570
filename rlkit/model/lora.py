"""Low-rank adapters (LoRA, arXiv:2106.09685, section 4.1) on either kind of model, through peft.

    y = W x + (alpha / r) B A x,  A [r, in], B [out, r];  W is frozen, A starts random and B at 0

Engines get the merged weight W + (alpha / r) B A, or with `trainer.lora.served=adapter` A and B themselves.
What is not covered: routed experts (stacked 3-d parameters here and in transformers), the router, embeddings and head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlkit.errors import UserError
from rlkit.model.base import CausalLM

ALL = "all-linear"
NAME = "default"
"""The name of the adapter inside a model; peft leaves it out of files."""
BASE = ".base_layer."
"""The part of a name under which peft keeps what it wraps."""
PREFIX = "base_model.model."
"""What every key in an adapter file begins with."""
ADAPTER_FILE = "adapter_model.safetensors"


def choose_targets(model: CausalLM, targets: str | Sequence[str]) -> list[str]:
    """Returns the names of the linear layers that get an adapter, as peft matches them: the last part, such as q_proj.

    Left out are the head, MTP modules, and every name that the projections of routed experts have too: peft 0.21 reads
    gate_proj of such a model as that of the stacked experts, also where only the shared expert or a dense layer is
    meant. Raises UserError for a name that no layer has.
    """
    experts = {name.split(".")[-2] for name in model.published() if ".experts." in name}
    allowed = sorted({name.rpartition(".")[2] for name, _ in _linear_layers(model)} - experts)
    if not allowed:
        raise UserError("trainer.lora: the model has no linear layer that can be a target; set trainer.lora=null")
    if targets == ALL:
        return allowed
    chosen = [targets] if isinstance(targets, str) else list(targets)
    wrong = [name for name in chosen if name not in allowed]
    if wrong or not chosen:
        why = " (peft would take it for the routed experts)" if set(wrong) & experts else ""
        raise UserError(
            f"trainer.lora.targets={targets!r}: {f'{wrong[0]} cannot be a target{why}' if wrong else 'it is empty'}; "
            f"give {ALL} or some of {', '.join(allowed)}"
        )
    return chosen


def count_parameters(model: CausalLM, rank: int, targets: Sequence[str]) -> int:
    """Counts the numbers in A and B of all adapters: r (in + out) for each layer."""
    layers = (layer for name, layer in _linear_layers(model) if name.rpartition(".")[2] in targets)
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def _linear_layers(model: CausalLM) -> Iterator[tuple[str, nn.Linear]]:
    ahead = {layer for module in model.mtp_modules() for layer in module.modules()}
    for name, module in model.core().named_modules():
        if isinstance(module, nn.Linear) and module is not model.head() and module not in ahead:
            yield name, module


def add_lora(model: CausalLM, *, rank: int, alpha: float, targets: str | Sequence[str], seed: int) -> None:
    """Freezes the model and puts adapters into it, which depend on `seed` alone; raises as `choose_targets` does."""
    from peft import inject_adapter_in_model  # takes seconds to import

    chosen = choose_targets(model, targets)
    # With their whole names: the MTP modules have layers of the same last names, and transformers' class has neither.
    config = _peft_config(rank, alpha, [name for name, _ in _linear_layers(model) if name.rpartition(".")[2] in chosen])
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.core(), adapter_name=NAME)
    for layer in model.new_layers():  # now: peft lets nothing learn but what it has put in
        layer.requires_grad_(True)


def adapter_weights(model: CausalLM) -> dict[str, Tensor]:
    """Returns A and B of every adapter under the keys of peft's files, on the CPU; empty without LoRA."""
    return {
        PREFIX + name.replace(f".{NAME}.", "."): tensor.detach().to("cpu", copy=True)
        for name, tensor in model.core().state_dict().items()
        if _is_adapter(name)
    }


def write_adapter(folder: Path, weights: Mapping[str, Tensor], *, rank: int, alpha: float, base: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, as `peft.PeftModel.from_pretrained` reads them.

    `base` is the checkpoint that the adapter belongs to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _peft_config(rank, alpha, sorted({key.split(".")[-3] for key in weights}))
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(dict(weights), folder / ADAPTER_FILE, metadata={"format": "pt"})


def merged(module: nn.Module, state: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
    """Returns the module's state as it would be without adapters: W + (alpha / r) B A, computed when asked for.

    Its tensors are read from `state`, by default from `module.state_dict()`. The product is taken in fp32 and the sum
    rounded once, to W's dtype. W itself does not change.
    """
    state = module.state_dict() if state is None else state
    return _Merged(module, state) if any(map(_is_adapter, state)) else state


class _Merged(Mapping[str, Tensor]):
    def __init__(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        self.module, self.state = module, state
        self.names = {name.replace(BASE, "."): name for name in state if not _is_adapter(name)}

    def __getitem__(self, name: str) -> Tensor:
        stored = self.names[name]
        layer = stored.removesuffix(f"{BASE}weight")
        if layer == stored:
            return self.state[stored]
        a, b = (self.state[f"{layer}.lora_{matrix}.{NAME}.weight"].float() for matrix in "AB")
        wrapper: Any = self.module.get_submodule(layer)
        weight = self.state[stored]
        return torch.addmm(weight.float(), b, a, alpha=wrapper.scaling[NAME]).to(weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _peft_config(rank: int, alpha: float, targets: Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, task_type="CAUSAL_LM")  # type: ignore[arg-type]
