"""A loss of the user's own, found by name in every process that needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from rewards.failure import described
from rewards.own_files import import_file, import_name
from rlkit.algo.losses.base import TAKEN, LossTerms
from rlkit.errors import UserError
from rlkit.types import Pack

EXPECTED = "a function (logprobs_T, pack, **settings) that returns rlkit.algo.LossTerms"


@dataclass(frozen=True, kw_only=True)
class UserLoss:
    """A `Loss` that travels as a name: each trainer rank imports the function itself.

    Example: `UserLoss(name="/runs/my_loss.py:reinforce", settings={"baseline": 0.1})`
    """

    name: str
    """"file.py:function" or "package.module:function"."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises UserError, with the fix, if the function cannot be found, imported or called with these settings."""
        try:
            signature(find_loss(self.name)).bind(None, None, **self.settings)
        except TypeError as error:
            given = ", ".join(self.settings) or "none"
            raise UserError(
                f"algo.loss_fn={self.name!r}: {error} (algo.loss_settings: {given}); write {EXPECTED}"
            ) from error

    def __call__(self, logprobs_T: Tensor, pack: Pack) -> LossTerms:
        """Calls the user's function; UserError if it returns what is no loss, or numbers that cannot be added up."""
        terms = find_loss(self.name)(logprobs_T, pack, **self.settings)
        if not isinstance(terms, LossTerms):
            raise UserError(f"algo.loss_fn={self.name!r} returned a {type(terms).__name__}; write {EXPECTED}")
        for name, number in {"loss": terms.loss, **terms.sums}.items():
            if not isinstance(number, Tensor) or number.ndim:
                what = f"a tensor of shape {tuple(number.shape)}" if isinstance(number, Tensor) else repr(number)
                raise UserError(
                    f"algo.loss_fn={self.name!r}: {name} is {what}; give a tensor without dimensions, for instance "
                    "(pack.weights_T * number_T).sum()"
                )
        if taken := sorted(name for name in terms.sums if name.partition("/")[0] in TAKEN):
            raise UserError(f"algo.loss_fn={self.name!r}: a step has a number named {taken[0]!r} already; rename yours")
        return terms


@lru_cache
def find_loss(name: str) -> Callable[..., LossTerms]:
    """Imports a loss; UserError names what is missing and how to mend it."""
    place, _, attribute = name.rpartition(":")
    if not place:
        raise UserError(f"algo.loss_fn={name!r} is not 'file.py:function' or 'package.module:function'")
    try:
        module = import_file(Path(place), "loss_file_") if place.endswith(".py") else import_name(place)
    except FileNotFoundError as error:
        raise UserError(f"algo.loss_fn={name!r}: the file {place} does not exist; correct the path") from error
    except ModuleNotFoundError as error:
        raise UserError(f"algo.loss_fn={name!r}: {error}; install it, or use file.py:function") from error
    except Exception as error:
        raise UserError(f"importing algo.loss_fn={name!r} failed: {described(error)}") from error
    if not callable(getattr(module, attribute, None)):
        raise UserError(f"algo.loss_fn={name!r}: {place} has no function {attribute!r}; write {EXPECTED}")
    return getattr(module, attribute)
