"""Models on the meta device: names and shapes without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init` that modes are asked about: those that draw, and `constant_`."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Makes modules without memory inside the block.

    Nothing is drawn for them either: on the meta device torch would import its compiler to draw nothing, which takes
    seconds.
    """
    with torch.device("meta"), _Undrawn():
        yield
