"""What a trainer keeps between two steps, on disk, in files that do not depend on how its ranks share the model out.

Every number stands there once: the fp32 weight of each parameter, its moments and how many steps these have seen, the
routers' biases, and the reference. The ranks deal the tensors among themselves, and each writes its files. A rank that
loads them takes from all files what it holds, so a run may go on with other numbers of ranks, of expert-parallel ranks,
or another ZeRO stage. A stack of experts is written in the parts that ranks hold, with the number of the first expert.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlkit.errors import UserError
from rlkit.model.base import CausalLM
from rlkit.model.experts import Experts
from rlkit.train import ranks
from rlkit.train.policy import frozen_names
from rlkit.train.steppers.base import WEIGHT, Stepper

MAX_FILE_BYTES = 2**30
"""A rank holds no more than so much (or one tensor) of the state a second time, while it is written."""
BUFFER, REFERENCE = "buffer", "reference"
"""What a tensor is, beside `WEIGHT` and the optimiser's words for its moments."""
RANDOM = "rng-{}.pt"
WAY_ON = "it was torn, or belongs to another model; remove it, or set another output_dir"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one tensor in a file, from row `first` of the whole tensor on; most tensors are there in one part."""

    file: Path
    key: str
    first: int
    shape: tuple[int, ...]

    def read(self, begin: int, end: int) -> Tensor:
        """Reads rows begin .. end of the whole tensor, which lie in this part."""
        with safe_open(self.file, framework="pt") as reader:
            return reader.get_slice(self.key)[begin - self.first : end - self.first]


Found = Mapping[tuple[str, str], Sequence[Part]]
"""The parts of every tensor, by what it is and by its name."""


class Layout:
    """Which experts of a model's tensors are on this rank, and which of the ranks writes a tensor."""

    def __init__(self, model: CausalLM) -> None:
        """Reads from the model how its experts and layers are shared out among the ranks of this process's group."""
        self.firsts: dict[str, int] = {}
        spread, peers = 1, ranks.size() // model.num_stages
        for prefix, module in model.named_modules():
            if isinstance(module, Experts) and module.share.size > 1:
                spread = module.share.size
                first = module.share.of(module.num_experts).start
                self.firsts |= {f"{prefix}.{name}": first for name, _ in module.named_parameters()}
        self._peer, self._replica = ranks.rank() % peers, ranks.rank() % peers // spread
        self._loads_R, self._expert_loads_R = [0] * peers, [0] * (peers // spread)

    def writes(self, name: str, tensor: Tensor) -> bool:
        """Says whether this rank writes the next tensor; ranks with the same layers ask in the same order.

        Each goes to the rank with the fewest numbers so far: of all with this layer, or for experts of those that hold
        them.
        """
        loads, own = (self._expert_loads_R, self._replica) if name in self.firsts else (self._loads_R, self._peer)
        lightest = loads.index(min(loads))
        loads[lightest] += tensor.numel()
        return lightest == own


class StateWriter:
    """Writes the tensors of one rank into files of bounded size."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._waiting, self._bytes, self._files = folder, dict[str, Tensor](), 0, 0

    def add(self, key: str, tensor: Tensor) -> None:
        """Takes a tensor; a copy on the CPU is kept until its file is written."""
        if self._waiting and self._bytes + tensor.nbytes > MAX_FILE_BYTES:
            self.flush()
        self._waiting[key] = tensor.detach().to("cpu", copy=True).contiguous()
        self._bytes += tensor.nbytes

    def flush(self) -> None:
        """Writes what is waiting, if anything is."""
        if self._waiting:
            save_file(self._waiting, self._folder / f"state-{ranks.rank():05}-{self._files:05}.safetensors")
            self._files += 1
        self._waiting, self._bytes = {}, 0


def save_state(folder: Path, model: CausalLM, stepper: Stepper, reference: CausalLM | None) -> None:
    """Writes this rank's part of the state into the folder; all ranks call it."""
    layout, writer = Layout(model), StateWriter(folder)
    for kind, name, tensor in _state(model, stepper, reference):
        if layout.writes(name, tensor):
            writer.add(f"{kind}:{layout.firsts.get(name, 0)}:{name}", tensor)
    writer.flush()
    torch.save(torch.get_rng_state(), folder / RANDOM.format(ranks.rank()))


def load_state(folder: Path, model: CausalLM, stepper: Stepper, reference: CausalLM | None) -> None:
    """Restores what `save_state` wrote, bit for bit, in the same layout or another one; all ranks call it.

    Raises UserError, naming folder and tensor, where something is missing or belongs to another model.
    """
    found, layout, frozen = _parts(folder), Layout(model), frozen_names(model)

    def read(kind: str, name: str, like: Tensor) -> Tensor:
        shape = getattr(like, "ds_shape", like.shape)  # ZeRO-3 has taken the parameter itself to pieces
        return _read(f"{folder}: {kind} of {name}", found[kind, name], layout.firsts.get(name, 0), shape)

    for name, parameter in model.named_parameters():
        if name not in frozen:
            kinds = [kind for kind, of in found if of == name and kind not in (BUFFER, REFERENCE)]
            stepper.restore(parameter, {kind: read(kind, name, parameter) for kind in {WEIGHT, *kinds}})
    with torch.no_grad():
        for name, buffer in _buffers(model):
            buffer.copy_(read(BUFFER, name, buffer))
        for name, tensor in _reference_state(model, reference):
            tensor.copy_(read(REFERENCE, name, tensor))
    random = folder / RANDOM.format(ranks.rank())
    torch.set_rng_state(torch.load(random if random.is_file() else folder / RANDOM.format(0)))


def _state(model: CausalLM, stepper: Stepper, reference: CausalLM | None) -> Iterator[tuple[str, str, Tensor]]:
    """Yields kind, name and whole tensor of everything, in the same order on every rank."""
    frozen = frozen_names(model)
    for name, parameter in model.named_parameters():
        if name not in frozen:
            for kind, tensor in stepper.state(parameter).items():
                yield kind, name, tensor
    for name, buffer in _buffers(model):
        yield BUFFER, name, buffer
    for name, tensor in _reference_state(model, reference):
        yield REFERENCE, name, tensor


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the buffers that a state has: the biases of routers."""
    kept = model.state_dict().keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _reference_state(model: CausalLM, reference: CausalLM | None) -> Iterator[tuple[str, Tensor]]:
    """Yields what the reference does not share with the policy; nothing where there is none."""
    if reference is not None:
        frozen = frozen_names(model)
        yield from ((name, tensor) for name, tensor in reference.named_parameters() if name not in frozen)
        yield from _buffers(reference)


def _parts(folder: Path) -> Found:
    """Lists what the files of a folder hold, from their headers."""
    found: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for file in sorted(folder.glob("state-*.safetensors")):
        try:
            with safe_open(file, framework="pt") as reader:
                for key in reader.keys():  # noqa: SIM118 - not a mapping
                    kind, first, name = key.split(":", 2)
                    shape = tuple(reader.get_slice(key).get_shape())
                    found[kind, name].append(Part(file, key, int(first), shape))
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{file} is no part of a trainer's state ({error}); {WAY_ON}") from error
    if not found:
        raise UserError(f"{folder} holds no state of a trainer; {WAY_ON}")
    return found


def _read(what: str, parts: Sequence[Part], first: int, shape: Sequence[int]) -> Tensor:
    """Reads rows `first` and on of a tensor, as many as `shape` has, from the parts that they are in."""
    if parts and not parts[0].shape:  # the number of steps, which all parts of a stack share
        with safe_open(parts[0].file, framework="pt") as reader:
            return reader.get_tensor(parts[0].key)
    last = first + shape[0]
    met = [(max(first, part.first), min(last, part.first + part.shape[0]), part) for part in parts]
    pieces = [(begin, part.read(begin, end)) for begin, end, part in sorted(met, key=lambda m: m[0]) if begin < end]
    tensor = torch.cat([piece for _, piece in pieces]) if pieces else torch.empty(0)
    if tensor.shape != torch.Size(shape):
        there = ", ".join(f"{part.shape} from {part.first}" for part in parts) or "none"
        raise UserError(f"{what} should have the shape {tuple(shape)} from {first}; there is {there}; {WAY_ON}")
    return tensor
