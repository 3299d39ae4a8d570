"""The comparison of packing with padding is fair and adds up."""

from __future__ import annotations

import pytest
import torch

from benchmarks import packing
from rlkit.algo import pack_demonstrations
from rlkit.config import SftRun
from rlkit.config.compose import load_config
from rlkit.run.prepare import prepare
from rlkit.types import Demonstration

PAIRS = [((1, 2, 3), (4, 5)), ((6,), (7, 8, 9, 1, 2)), ((3,), (4,)), ((5, 6), (7,))]
ROWS = [Demonstration.of(prompt, completion) for prompt, completion in PAIRS]


def test_padded_batch_by_hand() -> None:
    """Lengths 5, 6, 2, 3: at 12 places the first two make a pack of 2 x 6; the others one of 2 x 3."""
    first, second = packing.padded_batch(ROWS, max_tokens=12).packs
    assert (first.lengths, second.lengths) == ((6, 6), (3, 3))
    assert first.tokens_T.tolist() == [1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 1, 2]
    assert (first.weights_T * 9).tolist() == pytest.approx([0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1])
    assert second.tokens_T.tolist() == [3, 4, 0, 5, 6, 7]
    assert (second.weights_T * 9).tolist() == pytest.approx([0, 1, 0, 0, 0, 1])


@pytest.mark.parametrize("max_tokens", [1, 7, 12, 100])
def test_both_layouts_train_on_the_same_tokens(max_tokens: int) -> None:
    padded = packing.padded_batch(ROWS, max_tokens=max_tokens)
    packed = pack_demonstrations(ROWS, max_tokens=max_tokens)
    assert (padded.num_samples, padded.num_tokens) == (packed.num_samples, packed.num_tokens) == (4, 16)
    trained = [
        sorted(int(token) for pack in batch.packs for token in pack.tokens_T[pack.weights_T > 0])
        for batch in (padded, packed)
    ]
    assert trained[0] == trained[1]
    weights = [torch.cat([pack.weights_T for pack in batch.packs]) for batch in (padded, packed)]
    assert sorted(weights[0][weights[0] > 0].tolist()) == pytest.approx(sorted(weights[1][weights[1] > 0].tolist()))


def test_a_small_comparison_runs_and_its_losses_agree() -> None:
    """Three steps of 6 rows of GSM8K: real parts, no claim about the time."""
    sizes = [
        *("hidden_size=32", "num_hidden_layers=2", "intermediate_size=32", "moe_intermediate_size=16"),
        *("num_attention_heads=2", "qk_nope_head_dim=8", "v_head_dim=8"),
    ]
    tiny = [f"model.architecture.{size}" for size in sizes]
    few = ["data.train_size=24", "data.eval_size=4", "sft.batch_size=6", "sft.steps=3", "trainer.max_tokens=2048"]
    cfg = load_config("sft", SftRun, [*packing.SETTINGS, *tiny, *few])
    found = packing.compare(cfg, prepare(cfg), warmup=1, count=2)
    assert found.loss_gap <= packing.TOLERANCE
    assert found.places["packed"] == 1 < found.places["padded"]
    table = packing.report(found)
    assert "| packed |" in table and "| padded |" in table and "x tokens per second" in table


def test_a_wrong_layout_stops_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding that shifts the weights by one token trains on something else, and the losses say so."""
    right = packing._padded

    def shifted(*args):
        pack = right(*args)
        return type(pack)(tokens_T=pack.tokens_T, lengths=pack.lengths, weights_T=pack.weights_T.roll(-1))

    monkeypatch.setattr(packing, "_padded", shifted)
    few = ["data.train_size=8", "data.eval_size=4", "sft.batch_size=4", "model.architecture.num_hidden_layers=1"]
    cfg = load_config("sft", SftRun, [*packing.SETTINGS, *few])
    with pytest.raises(RuntimeError, match=r"step 1: the losses .* differ"):
        packing.compare(cfg, prepare(cfg), warmup=0, count=1)
