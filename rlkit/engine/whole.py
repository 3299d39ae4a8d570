"""Which weights an engine holds: a whole version, or none that anybody may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HalfLoadedError(RuntimeError):
    """An engine was asked something after a load that broke off, when it holds some tensors of each of two versions."""


class WholeLoads:
    """The version of the weights that an engine holds; between a load that broke off and a whole one there is none.

    An engine writes new tensors over its old ones as they arrive, so a load that ends early leaves a mixture: it
    computes, and what it says looks right.
    """

    def __init__(self) -> None:
        """Begins with version 0, which the engine has read from its checkpoint."""
        self._version, self._broken = 0, ""

    @property
    def version(self) -> int:
        """Returns the version; raises as `check` does if there is none."""
        self.check()
        return self._version

    def check(self) -> None:
        """Raises HalfLoadedError, which says which load broke off and why, unless a whole version is held."""
        if self._broken:
            raise HalfLoadedError(
                f"this engine holds no whole weights: {self._broken}. It samples again after a load that succeeds; a "
                "run that ends here is continued by its own command, with resume=auto"
            )

    @contextmanager
    def loading(self, version: int) -> Iterator[None]:
        """Holds nothing inside the block, and `version` after it; what the block raises is passed on."""
        self._broken = f"weights of version {version} are being loaded"
        try:
            yield
        except BaseException as error:
            self._broken = f"the load of version {version} broke off ({type(error).__name__}: {error})"
            raise
        self._version, self._broken = version, ""
