"""Data sets mixed by weight: which demonstrations a step shows.

Which part gives the next demonstration follows from the weights alone, and which of its rows follows from the seed and
from how many it has given. So a step depends on its number, and a resumed run needs no cursor for rows that lie in
memory. A part that is streamed stands where it stands: its cursor is in every `Step`, and so in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from rlkit.data.prompts import order
from rlkit.errors import UserError
from rlkit.types import Demonstration

R = TypeVar("R")
Cursors = Mapping[str, tuple[int, ...]]


class Stream(Generic[R]):
    """Demonstrations that are made while a run goes, from records in the order of their source, again and again."""

    def __init__(
        self,
        records: Callable[[int], Iterator[R]],
        encode: Callable[[R], tuple[Demonstration, ...]],
        *,
        first: int = 0,
        name: str = "",
    ) -> None:
        """`records` reads from a place on; what is before `first` is held out. `encode` gives () for what is not shown.

        `name` says in messages which setting names the source.
        """
        self._records, self._encode, self._first, self._name = records, encode, first, name
        self.seek((first, 0, 0))

    @property
    def cursor(self) -> tuple[int, int, int]:
        """Which record comes next, how many demonstrations of it are shown already, and how many rows were left out."""
        return self._record, self._shown, self.left_out

    def seek(self, cursor: tuple[int, ...]) -> None:
        """Goes on from a cursor; the records before it are not made into demonstrations again."""
        self._record, self._shown, self.left_out = cursor
        self._reading: Iterator[R] | None = None
        self._made: tuple[Demonstration, ...] = ()

    @property
    def is_new(self) -> bool:
        """Whether nothing has been read yet."""
        return self.cursor == (self._first, 0, 0)

    def rewind(self) -> None:
        """Goes back to the first record that is not held out."""
        self.seek((self._first, 0, 0))

    def next(self) -> Demonstration:
        """Returns the next demonstration; UserError for a source of which no row can be used."""
        ends = 0
        while self._shown >= len(self._made):
            if self._made:
                self._record, self._shown = self._record + 1, 0
            if self._reading is None:
                self._reading = self._records(self._record)
            record = next(self._reading, None)
            if record is None:
                ends += 1
                if ends > 1:
                    raise UserError(f"{self._name}: no row of it can be used, whether too long or held out; replace it")
                self._record, self._made, self._reading = self._first, (), None
                continue
            self._made = self._encode(record)
            if not self._made:
                self._record, self.left_out = self._record + 1, self.left_out + 1
        self._shown += 1
        return self._made[self._shown - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One data set of a mixture."""

    name: str
    weight: float
    shown: Sequence[Demonstration] | Stream[Any]
    left_out: int = 0
    """Rows that did not fit; a stream counts its own while it goes."""
    repeated: int = 0
    """Rows that stood there twice, or that ask what is held out."""


class Mixture:
    """Demonstrations of one data set or several, and those that are held out."""

    def __init__(self, parts: Sequence[Part] = (), held_out: Sequence[Demonstration] = ()) -> None:
        self.parts, self.held_out = tuple(parts), tuple(held_out)
        total = sum(part.weight for part in parts)
        self.shares = tuple(part.weight / total for part in parts)
        self._place, self._given = 0, [0] * len(self.parts)
        self._streamed_to = 0

    @property
    def size(self) -> int | None:
        """How many demonstrations all parts have together; None where one is streamed, whose end nobody knows."""
        sizes = [None if isinstance(part.shown, Stream) else len(part.shown) for part in self.parts]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def draw(self, step: int, size: int, seed: int) -> list[Demonstration]:
        """Returns the `size` demonstrations of step `step` (from 0).

        Raises ValueError where a stream would have to jump: with one, steps come in their order, after `begin`.
        """
        self._go_to(step * size)
        drawn = []
        for _ in range(size):
            number = self._next_part()
            shown, count = self.parts[number].shown, self._given[number]
            drawn.append(shown.next() if isinstance(shown, Stream) else _row(shown, count, _seed(seed, number)))
            self._count(number)
        self._streamed_to = self._place
        return drawn

    @property
    def cursors(self) -> Cursors:
        """Where every stream stands, by its place in the mixture."""
        return {str(i): part.shown.cursor for i, part in enumerate(self.parts) if isinstance(part.shown, Stream)}

    @property
    def left_out(self) -> int:
        """How many rows the streams have left out so far, because they do not fit or ask what is held out."""
        return sum(part.shown.left_out for part in self.parts if isinstance(part.shown, Stream))

    def resume(self, cursors: Cursors) -> None:
        """Brings the streams to where a checkpoint says that they stood."""
        for i, part in enumerate(self.parts):
            if isinstance(part.shown, Stream) and str(i) in cursors:
                part.shown.seek(cursors[str(i)])

    def begin(self, place: int) -> None:
        """Before the first `draw` of a stage: `place` demonstrations have been shown, which 0 makes streams begin anew.

        Raises ValueError for a stream that should have been brought to its place by `resume`, and was not.
        """
        for part in self.parts:
            if isinstance(part.shown, Stream) and place == 0:
                part.shown.rewind()
            elif isinstance(part.shown, Stream) and part.shown.is_new:
                raise ValueError(f"{part.name} is streamed and stands at its beginning, not behind {place} samples")
        self._streamed_to = place

    def _next_part(self) -> int:
        """Returns the part that is furthest behind its share: n_i never exceeds share_i x n by one or more."""
        lag = [share * (self._place + 1) - given for share, given in zip(self.shares, self._given, strict=True)]
        return lag.index(max(lag))

    def _count(self, number: int) -> None:
        self._given[number] += 1
        self._place += 1

    def _go_to(self, place: int) -> None:
        """Counts what each part has given before a place; that is known from the weights, without any row."""
        if place != self._streamed_to and any(isinstance(part.shown, Stream) for part in self.parts):
            raise ValueError(f"the streams stand at place {self._streamed_to}, not at {place}")
        if place < self._place:
            self._place, self._given = 0, [0] * len(self.parts)
        while self._place < place:
            self._count(self._next_part())


def _row(rows: Sequence[Demonstration], count: int, seed: int) -> Demonstration:
    """Returns the row that a part shows after `count` others: epochs laid end to end, each in an order of its own."""
    return rows[order(len(rows), seed, count // len(rows))[count % len(rows)]]


def _seed(seed: int, number: int) -> int:
    """Returns a seed for each part: else two views of the same rows would show each row at the same time."""
    return seed if number == 0 else int.from_bytes(blake2b(f"{seed}/{number}".encode(), digest_size=7).digest(), "big")
