"""Which demonstrations a step shows: shares, epochs, streams and where they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.data.mixture import Mixture, Part, Stream
from rlkit.data.prompts import rows_for_step
from rlkit.types import Demonstration


def rows(name: str, count: int) -> tuple[Demonstration, ...]:
    return tuple(Demonstration.of((1, 2), (3,), f"{name}/{i}") for i in range(count))


def part(name: str, weight: float, count: int) -> Part:
    return Part(name=name, weight=weight, shown=rows(name, count))


def streamed(name: str, weight: float, count: int, *, first: int = 0) -> Part:
    """A stream of numbers, of which every third is left out, and every fifth makes two demonstrations."""

    def records(begin: int) -> Iterator[int]:
        return iter(range(begin, count))

    def encode(number: int) -> tuple[Demonstration, ...]:
        if number % 3 == 2:
            return ()
        names = [f"{name}/{number}a", f"{name}/{number}b"] if number % 5 == 0 else [f"{name}/{number}"]
        return tuple(Demonstration.of((1, 2), (3,), one) for one in names)

    return Part(name=name, weight=weight, shown=Stream(records, encode, first=first, name=name))


def names(shown: list[Demonstration]) -> list[str]:
    return [one.id for one in shown]


def test_one_part_shows_the_rows_of_a_step_as_ever() -> None:
    mixture = Mixture([part("a", 3.0, 10)])
    for step in (0, 1, 5, 2):
        expected = [f"a/{row}" for row in rows_for_step(10, 4, step, 7)]
        assert names(mixture.draw(step, 4, 7)) == expected
    assert mixture.size == 10 and mixture.cursors == {}


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.floats(0.01, 5), min_size=2, max_size=5), size=st.integers(1, 9), steps=st.integers(1, 30))
def test_every_part_keeps_its_share_at_every_step(weights: list[float], size: int, steps: int) -> None:
    mixture = Mixture([part(str(i), weight, 7) for i, weight in enumerate(weights)])
    given = Counter[str]()
    for step in range(steps):
        given.update(name.split("/")[0] for name in names(mixture.draw(step, size, 0)))
        total = (step + 1) * size
        for i, weight in enumerate(weights):
            share = weight / sum(weights) * total
            # never a whole one ahead, and as many behind as the others are ahead together
            assert share - (len(weights) - 1) < given[str(i)] < share + 1
    assert given.total() == steps * size


def test_two_parts_of_seven_to_three() -> None:
    mixture = Mixture([part("a", 0.7, 50), part("b", 0.3, 50)])
    for step in range(6):
        found = Counter(name[0] for name in names(mixture.draw(step, 10, 0)))
        assert found == {"a": 7, "b": 3}


def test_a_step_depends_on_its_number_and_the_seed_alone() -> None:
    def fresh() -> Mixture:
        return Mixture([part("a", 2, 9), part("b", 1, 9)])

    whole = fresh()
    expected = [names(whole.draw(step, 5, 3)) for step in range(20)]
    assert names(fresh().draw(17, 5, 3)) == expected[17], "nothing has to be drawn before"
    assert names(whole.draw(4, 5, 3)) == expected[4], "nor is anything spent"
    assert names(fresh().draw(0, 5, 4)) != expected[0]
    first, second = ([name[2:] for step in expected for name in step if name[0] == letter] for letter in "ab")
    assert sorted(first[:9]) == sorted(second[:9]) == sorted(first[9:18]) and first[:9] != first[9:18] != second[:9]
    assert first[:9] != second[:9], "two views of the same rows come in orders of their own"


def test_a_stream_gives_its_rows_in_their_order_again_and_again() -> None:
    mixture = Mixture([streamed("s", 1, 8, first=1)])
    mixture.begin(0)
    assert names(mixture.draw(0, 5, 0)) == ["s/1", "s/3", "s/4", "s/6", "s/7"]
    assert mixture.cursors == {"0": (7, 1, 2)} and mixture.left_out == 2 and mixture.size is None
    assert names(mixture.draw(1, 5, 0)) == ["s/1", "s/3", "s/4", "s/6", "s/7"]


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_stream_goes_on_from_the_cursor_of_any_step(stop: int) -> None:
    """Rows of two demonstrations may be cut between two steps, and the end of the source between two others."""

    def fresh() -> Mixture:
        return Mixture([streamed("s", 2, 12), part("a", 1, 5), streamed("t", 1, 7, first=2)])

    whole = fresh()
    whole.begin(0)
    expected = []
    for step in range(12):
        expected.append(names(whole.draw(step, 3, 1)))
        if step == stop - 1:
            cursors = dict(whole.cursors)
    again = fresh()
    again.resume(cursors)
    again.begin(stop * 3)
    assert [names(again.draw(step, 3, 1)) for step in range(stop, 12)] == expected[stop:]
    assert again.cursors == whole.cursors and again.left_out == whole.left_out


def test_what_is_behind_the_cursor_is_not_encoded_again() -> None:
    made: list[int] = []

    def encode(number: int) -> tuple[Demonstration, ...]:
        made.append(number)
        return rows(str(number), 1)

    stream = Stream(lambda first: iter(range(first, 100)), encode)
    stream.seek((90, 0, 0))
    assert stream.next().id == "90/0" and made == [90]


def test_a_stream_does_not_jump() -> None:
    mixture = Mixture([streamed("s", 1, 8)])
    mixture.begin(0)
    mixture.draw(0, 2, 0)
    with pytest.raises(ValueError, match="the streams stand at place 2, not at 8"):
        mixture.draw(4, 2, 0)
    with pytest.raises(ValueError, match="s is streamed and stands at its beginning, not behind 8 samples"):
        Mixture([streamed("s", 1, 8)]).begin(8)
    mixture.begin(0)
    assert names(mixture.draw(0, 2, 0)) == ["s/0a", "s/0b"], "a second stage shows it from its beginning"


def test_a_stream_without_a_row_that_can_be_used_is_named() -> None:
    empty = Stream(lambda first: iter(range(first, 4)), lambda _: (), name="data.mixture[0].source='x.jsonl'")
    with pytest.raises(ValueError, match=r"data\.mixture\[0\]\.source='x\.jsonl': no row of it can be used"):
        empty.next()
