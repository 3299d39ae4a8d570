"""Addresses and rubrics that cannot be used are refused before anybody is asked."""

from __future__ import annotations

import pytest

from rewards import RewardError
from rewards.judge.endpoint import Endpoint
from rewards.judge.rubric import read_rubric


@pytest.mark.parametrize("url", ["http://[bad", "http://h:port/v1", "http://h:99999/v1", "http://h/\x00",
                                 "http://h /v1", "http://", "h:8000", "ftp://h/v1", "http://h:0/v1"])  # fmt: skip
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(RewardError, match="is no address; give one as http://127"):
        Endpoint(url, model="m", key_env="", body={}, concurrency=1, tries=1, timeout=1)


@pytest.mark.parametrize("name", ["~nobody_of_this_name/r.md", "none/r.txt", "a\x00b.md"])
def test_a_rubric_that_cannot_be_found_is_refused(name: str) -> None:
    with pytest.raises(RewardError, match=r"cannot be read \(.*\); correct the path"):
        read_rubric(name)
