"""Routing against a case worked by hand, and what must not influence it."""

from __future__ import annotations

import pytest
import torch

from rlkit.model.routing import choice_margins, choose_experts, gate_weights, router_scores

# One token, 8 experts in 4 groups of 2:    | group 0  | group 1  | group 2  | group 3  |
SCORES = torch.tensor([[0.90, 0.05, 0.50, 0.45, 0.60, 0.30, 0.20, 0.10]])


def chosen(scores: torch.Tensor, bias: torch.Tensor, groups: int, kept: int, k: int) -> set[int]:
    return set(choose_experts(scores, bias, groups, kept, k)[0].tolist())


def test_hand_computed_choice() -> None:
    """Group sums .95, .95 (tie kept both), .90, .30: with 2 groups kept, expert 4 (0.60) is out of reach."""
    zero = torch.zeros(8)
    assert chosen(SCORES, zero, 1, 1, 3) == {0, 4, 2}
    assert chosen(SCORES, zero, 4, 2, 3) == {0, 2, 3}
    # The bias lifts group 3 to 1.30 and takes group 1 out: .95 of group 0 stays second.
    bias = torch.tensor([0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert chosen(SCORES, bias, 4, 2, 2) == {7, 0}


def test_hand_computed_weights() -> None:
    experts = torch.tensor([[0, 7]])
    weights = gate_weights(SCORES, experts, True, 2.5)
    torch.testing.assert_close(weights, torch.tensor([[0.90 / 1.00 * 2.5, 0.10 / 1.00 * 2.5]]))
    torch.testing.assert_close(gate_weights(SCORES, experts, False, 2.0), torch.tensor([[1.8, 0.2]]))


def test_a_negative_bias_cannot_let_an_unchosen_group_in() -> None:
    """Masking with 0 instead of -inf, as some implementations do, would pick from a group that was not chosen."""
    bias = torch.full((8,), -2.0)
    bias[0:2] = -1.5
    assert chosen(SCORES, bias, 4, 1, 2) == {0, 1}


def test_scores_are_fp32_whatever_the_model_dtype() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32).bfloat16(), torch.randn(8, 32).bfloat16()
    scores = router_scores(x, weight)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, (x.double() @ weight.double().T).sigmoid().float(), atol=1e-5, rtol=0)
    assert (router_scores(x, weight) - (x @ weight.T).sigmoid().float()).abs().max() > 1e-3, "bf16 would be visible"


def test_gradient_flows_through_the_weights_and_not_through_the_choice() -> None:
    scores = SCORES.clone().requires_grad_()
    experts = choose_experts(scores, torch.zeros(8), 4, 2, 2)
    gate_weights(scores, experts, True, 1.0)[0, 0].backward()
    assert scores.grad is not None
    touched = scores.grad[0].nonzero().flatten().tolist()
    assert set(touched) == set(experts[0].tolist())


@pytest.mark.parametrize(("groups", "chosen_groups", "k"), [(1, 1, 2), (4, 2, 3), (4, 4, 2), (2, 1, 4)])
def test_choices_turn_at_their_margin_and_not_before(groups: int, chosen_groups: int, k: int) -> None:
    """Moving every score by less than half the margin changes no choice; the margin is no wider than it must be."""
    random = torch.Generator().manual_seed(groups * 10 + k)
    scores_TE = torch.rand(200, 8, generator=random, dtype=torch.float64)
    bias_E = torch.randn(8, generator=random, dtype=torch.float64) * 0.1
    margins_T = choice_margins(scores_TE, bias_E, groups, chosen_groups, k)

    def chosen(scores: torch.Tensor) -> torch.Tensor:
        return choose_experts(scores, bias_E, groups, chosen_groups, k).sort(dim=-1).values

    before, turned = chosen(scores_TE), torch.zeros(200, dtype=torch.bool)
    for _ in range(40):
        noise = torch.rand(200, 8, generator=random, dtype=torch.float64) * 2 - 1
        # a group's score is a sum of two, so it moves by twice as much
        assert torch.equal(chosen(scores_TE + noise * margins_T.unsqueeze(1) * 0.249), before)
        turned |= (chosen(scores_TE + noise * margins_T.unsqueeze(1) * 4) != before).any(-1)
    finite = margins_T.isfinite()
    assert (turned[finite]).float().mean() > 0.9 or not finite.any()
