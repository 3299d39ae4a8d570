"""Routing against a case worked by hand, and what must not influence it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlkit.model import DeepseekV3, config
from rlkit.model.routing import RULES, SoftmaxRule, choice_margins, choose_experts, gate_weights, router_scores
from tests.model.tiny import BASE, seeded

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


def test_softmax_ranks_a_group_by_its_highest_score() -> None:
    """Highest .90, .50, .60, .20: groups 0 and 2 are kept, where the sums keep 0 and 1; no bias."""
    rule = RULES["softmax"]
    assert set(choose_experts(SCORES, None, 4, 2, 3, rule)[0].tolist()) == {0, 4, 5}
    assert chosen(SCORES, torch.zeros(8), 4, 2, 3) == {0, 2, 3}
    assert set(choose_experts(SCORES, None, 1, 1, 3, rule)[0].tolist()) == {0, 4, 2}


def test_softmax_scores_are_shares_in_fp32() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32).bfloat16(), torch.randn(8, 32).bfloat16()
    scores = router_scores(x, weight, RULES["softmax"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, (x.double() @ weight.double().T).softmax(-1).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("groups", "chosen_groups", "k"), [(1, 1, 6), (8, 3, 6), (8, 1, 4)])
def test_softmax_choices_turn_at_their_margin_and_not_before(groups: int, chosen_groups: int, k: int) -> None:
    """Margins are in units of the logits: scores among 64 experts are so small that all would look like ties."""
    random = torch.Generator().manual_seed(groups * 10 + k)
    logits_TE = torch.randn(200, 64, generator=random, dtype=torch.float64)
    rule = RULES["softmax"]
    margins_T = choice_margins(logits_TE.softmax(-1), None, groups, chosen_groups, k, rule)

    def choice(logits: torch.Tensor) -> torch.Tensor:
        return choose_experts(logits.softmax(-1), None, groups, chosen_groups, k, rule).sort(dim=-1).values

    before, turned = choice(logits_TE), torch.zeros(200, dtype=torch.bool)
    for _ in range(40):
        noise = torch.rand(200, 64, generator=random, dtype=torch.float64) * 2 - 1
        assert torch.equal(choice(logits_TE + noise * margins_T.unsqueeze(1) * 0.499), before)
        turned |= (choice(logits_TE + noise * margins_T.unsqueeze(1) * 4) != before).any(-1)
    assert turned.float().mean() > 0.9


def test_scores_that_vanish_are_a_tie() -> None:
    """exp(-200) is 0 in fp32: which of two such experts is chosen is up to the sort, in every implementation."""
    scores_TE = torch.tensor([[0.0, -200.0, -201.0]]).softmax(-1)
    assert scores_TE[0, 1:].tolist() == [0.0, 0.0]
    assert choice_margins(scores_TE, None, 1, 1, 2, RULES["softmax"]).tolist() == [0.0]
    assert float(choice_margins(scores_TE, None, 1, 1, 1, RULES["softmax"])) > 80


class SqrtSoftplusRule(SoftmaxRule):
    """A third rule, scores sqrt(softplus(logit)); choice and margins as the softmax rule has them."""

    def scores(self, logits_TE: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(logits_TE).sqrt()


def test_another_rule_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is used by forward and margins, and written and read under the name of its checkpoints."""
    monkeypatch.setitem(RULES, "sqrtsoftplus", SqrtSoftplusRule())
    monkeypatch.setitem(config.PUBLISHED, "sqrtsoftplus", ("third", "ThirdForCausalLM"))
    model = seeded(replace(BASE, scoring_func="sqrtsoftplus"))
    router = model.get_submodule("model.layers.1.mlp.gate")
    x_TD = torch.randn(16, 64)
    expected = torch.nn.functional.softplus(x_TD @ router.weight.T).sqrt()
    torch.testing.assert_close(router(x_TD).scores_TE, expected)
    best = expected.sort(descending=True).values.log()
    torch.testing.assert_close(router.margins(x_TD), best[:, 1] - best[:, 2])
    model.save_checkpoint(tmp_path, dtype="fp32")
    read = DeepseekV3.from_checkpoint(tmp_path)
    tokens = torch.arange(9)
    assert read.config == model.config and torch.equal(read(tokens), model(tokens))


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
