"""A Ray that the runs of one file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.runs import one_ray


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with one_ray():
        yield
