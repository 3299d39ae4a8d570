"""A loss of the user's own: what is taken, and what is refused with the function's name and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlkit.algo.losses.base import TAKEN
from rlkit.algo.losses.custom import UserLoss, find_loss
from rlkit.errors import UserError
from rlkit.train.trainer import add_to
from rlkit.types import Pack

PACK = Pack(tokens_T=torch.arange(4), lengths=(4,), weights_T=torch.tensor([0.0, 0.5, 0.25, 0.25]))
HEAD = """
from rlkit.algo import LossTerms
def mine(logprobs_T, pack):
    loss = -(pack.weights_T * logprobs_T).sum()
"""


def called(folder: Path, body: str) -> object:
    file = folder / "mine.py"
    file.write_text(HEAD + body)
    find_loss.cache_clear()
    return UserLoss(name=f"{file}:mine")(torch.full((4,), -1.0), PACK)


@pytest.mark.parametrize("sums", ["{}", "{'share': loss.detach()}", "{'my/share': loss.detach(), 'kl': loss.detach()}"])
def test_numbers_under_names_of_its_own_are_taken(sums: str, tmp_path: Path) -> None:
    called(tmp_path, f"    return LossTerms(loss=loss, sums={sums})\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return loss", r"returned a Tensor; write a function"),
        ("return LossTerms(loss=0.5, sums={})", r"loss is 0\.5; give a tensor without dimensions"),
        ("return LossTerms(loss=logprobs_T, sums={})", r"loss is a tensor of shape \(4,\); give"),
        ("return LossTerms(loss=loss, sums={'share': 0.5})", r"share is 0\.5; give a tensor"),
        ("return LossTerms(loss=loss, sums={'share': pack.weights_T})", r"share is a tensor of shape \(4,\)"),
        ("return LossTerms(loss=loss, sums={'step': loss})", r"a number named 'step' already; rename yours"),
        ("return LossTerms(loss=loss, sums={'entropy': loss})", r"a number named 'entropy' already"),
        ("return LossTerms(loss=loss, sums={'mtp_loss': loss})", r"a number named 'mtp_loss' already"),
        ("return LossTerms(loss=loss, sums={'reward': loss})", r"a number named 'reward' already"),
        ("return LossTerms(loss=loss, sums={'max_violation/3': loss})", r"a number named 'max_violation/3' already"),
    ],
)
def test_what_cannot_be_added_up_is_refused(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"algo\.loss_fn=.*mine\.py:mine'.*{message}"):
        called(tmp_path, f"    {body}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def mine(:\n", r"SyntaxError: .*mine\.py:1"),
        ("nope\n", r"NameError: name 'nope' is not defined at .*mine\.py:1"),
        ("import json\njson.loads('{')\n", r"JSONDecodeError: .*mine\.py:2"),
        ("raise SystemError('no')\n", r"SystemError: no at .*mine\.py:1"),
        ("import no_such_module_at_all\n", r"No module named 'no_such_module_at_all'; install it"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    find_loss.cache_clear()
    with pytest.raises(UserError, match=rf"algo\.loss_fn=.*{message}"):
        UserLoss(name=f"{tmp_path / 'mine.py'}:mine").check()


def test_every_pack_has_the_same_numbers() -> None:
    one = torch.tensor(1.0)
    sums: dict[str, float] = {}
    add_to(sums, {"loss": one, "share": one})
    add_to(sums, {"loss": one, "share": one})
    assert sums == {"loss": 2.0, "share": 2.0}
    for odd in ({"loss": one}, {"loss": one, "share": one, "late": one}):
        with pytest.raises(UserError, match=r"(share|late) is measured of some packs only"):
            add_to(sums, odd)


def test_names_that_figures_know_stay_free() -> None:
    """A loss of one's own may measure what GRPO's measures, and has its figure then."""
    assert not {"kl", "clip_fraction"} & TAKEN
