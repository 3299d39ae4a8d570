"""Losses of reward models, packs of pairs, and calibration: against numbers worked out by hand and other libraries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli

from rlkit.algo import BradleyTerryLoss, PointwiseLoss, pack_labelled, pack_pairs, shard
from rlkit.algo.losses import bradley_terry_loss, pointwise_loss
from rlkit.algo.losses.preference import at_ends
from rlkit.types import Batch, LabelledPack, PairPack
from rlkit.watch.calibration import calibration_curve, expected_calibration_error

PAIRS = [([1, 2, 3], [1, 4]), ([5], [6, 7, 8, 9]), ([10, 11], [12, 13]), ([14, 15, 16], [17]), ([18], [19])]
LABELLED = [([1, 2, 3], 1.0), ([4], 0.0), ([5, 6], 0.25)]


def scored(batch: Batch, loss: BradleyTerryLoss | PointwiseLoss) -> tuple[float, dict[str, float], Tensor]:
    """Loss, sums and gradient of a batch whose samples score table[last token] x length."""
    table, total, sums = torch.linspace(-1, 1, 20, requires_grad=True), torch.zeros(()), dict[str, float]()
    for pack in batch.packs:
        scores_N = table[at_ends(pack.tokens_T, pack)] * torch.tensor(pack.lengths)
        terms = loss(scores_N, pack)
        total = total + terms.loss
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in terms.sums.items()}
    total.backward()
    assert table.grad is not None
    return float(total.detach()), sums, table.grad


def test_bradley_terry_is_the_likelihood_of_preferences() -> None:
    chosen_P, rejected_P = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([0.5, 1.0, 0.3])
    theirs = -Bernoulli(logits=chosen_P - rejected_P).log_prob(torch.ones(3)).mean()
    by_hand = sum(math.log1p(math.exp(-margin)) for margin in (1.5, -2.0, 0.0)) / 3
    assert float(bradley_terry_loss(chosen_P, rejected_P)) == pytest.approx(float(theirs), abs=1e-6)
    assert float(bradley_terry_loss(chosen_P, rejected_P)) == pytest.approx(by_hand, abs=1e-6)
    assert math.isfinite(float(bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]))))


def test_pointwise_is_the_likelihood_of_labels() -> None:
    scores_N, labels_N = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([1.0, 1.0, 0.25])
    p_N = scores_N.double().sigmoid()
    theirs = -(labels_N * p_N.log() + (1 - labels_N) * (1 - p_N).log()).mean()
    assert float(pointwise_loss(scores_N, labels_N)) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 5, 6, 9, 1000])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_packs_and_ranks_change_no_gradient(max_tokens: int, num_ranks: int, kind: str) -> None:
    loss = BradleyTerryLoss() if kind == "pairs" else PointwiseLoss()

    def packed(most: int) -> Batch:
        return pack_pairs(PAIRS, max_tokens=most) if kind == "pairs" else pack_labelled(LABELLED, max_tokens=most)

    whole, whole_sums, expected = scored(packed(1000), loss)
    assert len(packed(1000).packs) == 1
    shares = shard(packed(max_tokens), num_ranks)
    assert len({len(share.packs) for share in shares}) == 1, "a rank with fewer packs would be waited for for ever"
    found = [scored(share, loss) for share in shares]
    torch.testing.assert_close(sum(gradient for _, _, gradient in found), expected, atol=1e-6, rtol=0)
    assert sum(value for value, _, _ in found) == pytest.approx(whole, abs=1e-6)
    for name, value in whole_sums.items():
        assert sum(sums[name] for _, sums, _ in found) == pytest.approx(value, abs=1e-6)


def test_the_gradient_is_that_of_the_mean_over_pairs() -> None:
    value, sums, gradient = scored(pack_pairs(PAIRS, max_tokens=6), BradleyTerryLoss())
    table = torch.linspace(-1, 1, 20, requires_grad=True)
    margins = [table[chosen[-1]] * len(chosen) - table[rejected[-1]] * len(rejected) for chosen, rejected in PAIRS]
    expected = -torch.stack(margins).sigmoid().log().mean()
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), abs=1e-6)
    torch.testing.assert_close(gradient, table.grad, atol=1e-6, rtol=0)
    assert sums["accuracy"] == pytest.approx(sum(float(margin.detach()) > 0 for margin in margins) / len(PAIRS))
    assert sums["margin"] == pytest.approx(sum(float(margin.detach()) for margin in margins) / len(PAIRS), abs=1e-6)


def test_a_pair_stays_together_and_knows_its_id() -> None:
    batch = pack_pairs(PAIRS, max_tokens=7, ids=[f"row {i}" for i in range(len(PAIRS))])
    assert (batch.num_samples, batch.num_tokens) == (10, 20)
    seen = set()
    for share in shard(batch, 3):
        for pack in share.packs:
            assert isinstance(pack, PairPack) and len(pack.lengths) % 2 == 0 and pack.ids[::2] == pack.ids[1::2]
            if pack.weights_T.any():
                parts = [tuple(part.tolist()) for part in pack.tokens_T.split(list(pack.lengths))]
                seen |= set(zip(parts[::2], parts[1::2], pack.ids[::2], strict=True))
                ends = torch.tensor(pack.lengths).cumsum(0) - 1
                assert pack.weights_T.nonzero().flatten().tolist() == ends.tolist(), "the last token of each sample"
    expected = {(tuple(a), tuple(b), f"row {i}") for i, (a, b) in enumerate(PAIRS)}
    assert seen == expected


def test_labels_stand_where_the_score_is_read() -> None:
    [pack] = pack_labelled(LABELLED, max_tokens=100).packs
    assert isinstance(pack, LabelledPack)
    by_sample = dict(zip(map(len, pack.tokens_T.split(list(pack.lengths))), at_ends(pack.labels_T, pack), strict=True))
    assert by_sample == {3: 1.0, 1: 0.0, 2: 0.25}
    assert pack.weights_T.sum() == pytest.approx(1.0) and pack.weights_T.count_nonzero() == 3


def test_calibration_by_hand() -> None:
    """Two predictions at about 55 %, one of them right; two at 95 %, both right; one at 100 %, wrong."""
    confidences, right = [0.54, 0.56, 0.95, 0.96, 1.0], [1.0, 0.0, 1.0, 1.0, 0.0]
    curve = calibration_curve(confidences, right, bins=5)
    assert [(each.size, each.accuracy) for each in curve] == [(2, 0.5), (3, pytest.approx(2 / 3))]
    by_hand = 2 / 5 * abs(0.5 - 0.55) + 3 / 5 * abs(2 / 3 - 2.91 / 3)
    assert expected_calibration_error(curve) == pytest.approx(by_hand)


def test_true_probabilities_are_calibrated() -> None:
    draw = torch.Generator().manual_seed(0)
    confidences_N = torch.rand(20_000, generator=draw) / 2 + 0.5
    right_N = (torch.rand(20_000, generator=draw) < confidences_N).float()
    error = expected_calibration_error(calibration_curve(confidences_N.tolist(), right_N.tolist()))
    assert error < 0.02
    sure = expected_calibration_error(calibration_curve([0.99] * 20_000, right_N.tolist()))
    assert sure == pytest.approx(0.99 - float(right_N.mean()), abs=1e-3)
