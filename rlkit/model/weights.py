"""The weights of our model under their published names, out of it and into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlkit.model.files.names import HEAD, published_names
from rlkit.model.lora import merged

if TYPE_CHECKING:
    from rlkit.model.deepseek import DeepseekV3


def checkpoint_weights(model: DeepseekV3) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its published name, as a view without gradient; where LoRA changes it, merged and new."""
    ours = merged(model)
    for name, place in published_names(model.config).items():
        yield name, place.view(ours[place.name])
    if model.config.tie_word_embeddings:  # vLLM reads the head from the checkpoint even when it is tied
        yield HEAD, ours[HEAD]


def load_weights(model: DeepseekV3, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy published tensors into the model, casting to its dtypes.

    The copies of embedding and head that MTP modules bring may be absent. ValueError for a tensor that is missing,
    unknown, given twice or of another shape, and for a copy that is not equal to what it copies.
    """
    ours = model.state_dict()
    table = published_names(model.config)
    copied = {place.name for place in table.values() if place.copy}
    first: dict[str, str] = {}
    seen: set[str] = set()
    for name, tensor in weights:
        if name not in table:
            if name == HEAD:  # tied: the file may repeat the embedding
                continue
            raise ValueError(f"{name}: this model has no such weight; check config.json against the checkpoint")
        if name in seen:
            raise ValueError(f"{name}: given twice; remove one of the copies")
        if tensor.shape != table[name].shape:
            shapes = f"shape {tuple(tensor.shape)}, but config.json makes it {table[name].shape}"
            raise ValueError(f"{name}: {shapes}; use the config.json that belongs to these weights")
        target = table[name].view(ours[table[name].name])
        if table[name].name in copied and first.setdefault(table[name].name, name) != name:
            if not torch.equal(tensor.to(target), target):
                other = first[table[name].name]
                raise ValueError(f"{name}: not equal to {other}; embedding and head are shared with MTP, one has to go")
        else:
            target.copy_(tensor)
        seen.add(name)
    missing = [name for name in table if name not in seen and not table[name].copy]
    if missing:
        raise ValueError(f"{missing[0]}: missing, with {len(missing) - 1} others; the checkpoint is not complete")
