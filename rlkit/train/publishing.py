"""Which rank publishes which weights: every rank works it out alone, and together they publish each weight once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate


def share_of(sizes: Mapping[str, int], owners: Callable[[str], Sequence[int]], rank: int) -> tuple[str, ...]:
    """Returns the names that `rank` publishes, in the order of `sizes`, so that all ranks publish about as many bytes.

    `sizes` gives every published name and its bytes, the same table in the same order on every rank; `owners` the
    ranks that hold a name: all of them with replicas only, those that hold the expert under expert parallelism. Names
    with the same owners are dealt together, one run of them to each, those with the fewest owners first: a rank that
    has more than others by then gets less of the next. With one set of owners no rank is further from an even part
    than the largest tensor. Raises ValueError for a name that nobody holds.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in sizes:
        if not (holders := tuple(owners(name))):
            raise ValueError(f"{name}: no rank holds it, so nobody can publish it")
        groups.setdefault(holders, []).append(name)
    loads: dict[int, int] = {}
    mine: set[str] = set()
    for holders in sorted(groups, key=len):
        dealt = _dealt({name: sizes[name] for name in groups[holders]}, [loads.get(owner, 0) for owner in holders])
        for owner, names in zip(holders, dealt, strict=True):
            loads[owner] = loads.get(owner, 0) + sum(sizes[name] for name in names)
            if owner == rank:
                mine.update(names)
    return tuple(name for name in sizes if name in mine)


def _dealt(sizes: Mapping[str, int], loads: Sequence[int]) -> list[list[str]]:
    """Cuts names into one run per owner; a name goes to the owner in whose part the middle of its bytes lies."""
    level, parts = _level(sum(sizes.values()), loads)
    ends = list(accumulate(2 * max(level - parts * load, 0) for load in loads))  # in bytes / (2 parts), whole numbers
    runs: list[list[str]] = [[] for _ in loads]
    owner, start = 0, 0
    for name, size in sizes.items():
        while owner < len(loads) - 1 and parts * (2 * start + size) >= ends[owner]:
            owner += 1
        runs[owner].append(name)
        start += size
    return runs


def _level(total: int, loads: Sequence[int]) -> tuple[int, int]:
    """Returns how far `total` fills up loads, the lowest first, as a fraction: sum of max(level - load, 0) = total."""
    ordered = sorted(loads)
    below = sum(ordered)
    for parts in range(len(ordered), 1, -1):
        if total + below >= parts * ordered[parts - 1]:
            return total + below, parts
        below -= ordered[parts - 1]
    return total + below, 1
