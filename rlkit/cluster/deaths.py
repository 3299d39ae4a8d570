"""Say which part of a run has died; Ray itself says in which task of which class, in forty lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rlkit.errors import PartDiedError

LOOK_S = 5.0
"""How long to wait for a sign of life of each part: one that has died answers at once, one that is at work does not."""
_parts: dict[str, tuple[str, Any]] = {}
"""Ray's id of an actor -> what the run calls it, and its handle."""


@contextmanager
def named_parts(parts: Mapping[str, Any]) -> Iterator[None]:
    """Knows actors, inside the block, by what the run calls them."""
    known = {actor._actor_id.hex(): (name, actor) for name, actor in parts.items()}
    _parts.update(known)
    try:
        yield
    finally:
        for actor_id in known:
            del _parts[actor_id]


@contextmanager
def deaths_named() -> Iterator[None]:
    """Raises PartDiedError in place of Ray's error where a part has died while it was asked something.

    What a part raises while it lives, or while it is made, is left as it is: it may be a bug, whose traceback is in it.
    When one of several ranks dies, the others fail as well, in the middle of a sum with it; and what a dead rank has
    published is lost to the engines. So an error of a living part is looked into before it is passed on. A part that
    has lost a process of its own, such as an engine one of its workers, says so itself.
    """
    try:
        yield
    except RayTaskError as error:
        if (dead := _dead()) is not None:
            raise dead from error
        if isinstance(error.cause, PartDiedError):
            asked = re.search(r"actor_id=([0-9a-f]+)", str(error))  # what Ray raises has it in its text alone
            raise PartDiedError(f"{_name(asked and asked[1])}: {error.cause}") from error
        raise
    except RayActorError as error:
        if error.actor_init_failed:
            raise
        raise _died(error) from error
    except RayError as error:
        raise _dead() or PartDiedError(f"a process of Ray itself has died ({_first_line(error)})") from error


def _dead() -> PartDiedError | None:
    """Asks every part for a sign of life; returns the error of the first one that is dead."""
    asked = [actor.__ray_ready__.remote() for _, actor in _parts.values()]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=LOOK_S) if asked else ([], [])
    for answer in ready:
        try:
            ray.get(answer)
        except RayActorError as error:
            return _died(error)
        except RayError:
            continue
    return None


def _died(error: RayActorError) -> PartDiedError:
    text = str(error)
    name = _name(error.actor_id)
    process = f", process {found[1]}" if (found := re.search(r"pid: (\d+)", text)) else ""
    machine = f" on {found[1]}" if (found := re.search(r"ip: (\S+)", text)) else ""
    detail = re.search(r"Worker exit detail: (.*?\.)(?: Some common causes|\s*$)", text, re.DOTALL)
    return PartDiedError(f"{name}{process}{machine} has died ({detail[1] if detail else _first_line(error)})")


def _name(actor_id: object) -> str:
    return _parts.get(str(actor_id), ("a part", None))[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
