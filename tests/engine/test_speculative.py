"""Speculative sampling: exact whatever the drafts are worth."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rlkit.engine.local import TorchEngine
from rlkit.engine.speculative import accept
from rlkit.model import DeepseekV3, drafting
from rlkit.model.ragged import lay_out
from rlkit.types import Group, Prompt, Rollout, Sampling
from tests.engine.test_local import CONFIG, EOS, PROMPTS, SAMPLING, drawn, spell
from tests.model.tiny import seeded

MTP = replace(CONFIG, num_nextn_predict_layers=1)
GREEDY = replace(SAMPLING, temperature=0.0)


def an_engine(speculative_tokens: int, model: DeepseekV3 | None = None, max_batch: int = 256) -> TorchEngine:
    return TorchEngine(model or seeded(MTP), EOS, spell, max_batch, speculative_tokens)


def chi_square(counts: Sequence[float], expected: Sequence[float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; classes that expect fewer than five are taken together."""
    common = [i for i, value in enumerate(expected) if value >= 5]
    pairs = [(counts[i], expected[i]) for i in common]
    rest = (sum(counts) - sum(n for n, _ in pairs), sum(expected) - sum(e for _, e in pairs))
    pairs += [rest] if rest[1] >= 1 else []
    return sum((n - e) ** 2 / e for n, e in pairs), len(pairs) - 1


def fits(counts: Sequence[float], expected: Sequence[float]) -> bool:
    """Within five standard deviations of the statistic's mean: a right sampler leaves them once in 10,000 seeds."""
    found, freedom = chi_square(counts, expected)
    return found < freedom + 5 * (2 * freedom) ** 0.5


def test_a_draft_is_accepted_by_hand() -> None:
    """p = (.2, .8), q = (.5, .5): token 0 stands below u = .4, else 1 comes; token 1 always stands."""
    target = torch.tensor([[[0.2, 0.8], [0.7, 0.3]]]).double().expand(5, 2, 2)
    drafted = torch.full((5, 1, 2), 0.5).double()
    drafts = torch.tensor([[0], [0], [1], [1], [0]])
    uniforms = torch.tensor(
        [[[0.39, 0.9], [0.5, 0.69]], [[0.41, 0.0], [0.5, 0.0]], [[0.99, 0.0], [0.5, 0.71]], [[0.0, 0.0], [0.5, 0.0]],
         [[0.4001, 0.99], [0.0, 0.0]]]
    ).double()  # fmt: skip
    accepted, following = accept(drafts, drafted, target, uniforms)
    assert accepted.tolist() == [1, 0, 1, 1, 0]
    assert following.tolist() == [0, 1, 1, 0, 1], (
        "after an accepted draft from (.7, .3), else from norm((p - q)+) = (0, 1)"
    )


def test_greedy_is_the_case_of_sure_things() -> None:
    one_hot = torch.eye(4).double()
    target = one_hot[torch.tensor([[2, 1, 3], [2, 1, 3], [0, 1, 3]])]
    drafts = torch.tensor([[2, 1], [2, 2], [2, 1]])
    for u in (0.0, 0.5, 1 - 2**-53):
        uniforms = torch.full((3, 3, 2), u, dtype=torch.float64)
        accepted, following = accept(drafts, one_hot[drafts], target, uniforms)
        assert (accepted.tolist(), following.tolist()) == ([2, 1, 0], [3, 1, 0])


def test_drafts_from_the_target_itself_always_stand() -> None:
    random = torch.Generator().manual_seed(0)
    probs = torch.rand(1000, 4, 6, generator=random, dtype=torch.float64).softmax(-1)
    drafts = torch.stack([probs[:, i].multinomial(1, generator=random).squeeze(1) for i in range(3)], dim=1)
    uniforms = torch.rand(1000, 4, 2, generator=random, dtype=torch.float64)
    accepted, _ = accept(drafts, probs[:, :3], probs, uniforms)
    assert accepted.tolist() == [3] * 1000


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whatever_the_drafts_the_tokens_are_the_targets(seed: int) -> None:
    """Two drafts over 5 tokens, q and p unrelated; the third place is reached only where both stand."""
    random = torch.Generator().manual_seed(seed)
    size, count = 5, 100_000

    def table(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, size, generator=random, dtype=torch.float64)).softmax(-1)

    p0, p1, p2, q0, q1 = table(), table(size), table(size, size), table(), table(size)
    x0 = q0.multinomial(count, replacement=True, generator=random)
    x1 = q1[x0].multinomial(1, generator=random).squeeze(1)
    drafts, drafted = torch.stack([x0, x1], dim=1), torch.stack([q0.expand(count, -1), q1[x0]], dim=1)
    target = torch.stack([p0.expand(count, -1), p1[x0], p2[x0, x1]], dim=1)
    uniforms = torch.rand(count, 3, 2, generator=random, dtype=torch.float64)
    accepted, following = accept(drafts, drafted, target, uniforms)
    tokens = torch.cat([drafts, following.unsqueeze(1)], dim=1).scatter(
        1, accepted.unsqueeze(1), following.unsqueeze(1)
    )
    share = torch.minimum(p0, q0).sum()
    assert_close((accepted > 0).double().mean(), share, atol=0.01, rtol=0, msg="acceptance is 1 - TV(p, q)")
    pairs = tokens[:, 0] * size + tokens[:, 1]
    triples = pairs * size + tokens[:, 2]
    reached = (accepted > 0, accepted > 1)
    firsts = torch.bincount(tokens[reached[0], 0], minlength=size)
    both = torch.bincount(pairs[reached[1]], minlength=size**2)
    for found, places, expected in (
        (tokens[:, 0], size, count * p0),
        (pairs[reached[0]], size**2, firsts.unsqueeze(1) * p1),
        (triples[reached[1]], size**3, both.unsqueeze(1) * p2.flatten(0, 1)),
    ):
        assert fits(torch.bincount(found, minlength=places).tolist(), expected.flatten().tolist())


@torch.no_grad()
def test_drafts_are_the_modules_and_checks_are_the_models() -> None:
    """The caches against whole forward passes, over three rounds that keep different numbers of tokens."""
    model = seeded(MTP)
    texts = [[3, 4, 5], [7], [9, 9, 2, 6, 5, 3, 5]]
    logits_BV, state = drafting.begin(model, texts)
    state = state.rows(torch.arange(3), 30)
    for text, logits in zip(texts, logits_BV, strict=True):
        assert_close(logits, model(torch.tensor(text))[-1], atol=1e-4, rtol=1e-4)
    newest = torch.tensor([2, 8, 4])
    for kept in ([3, 1, 2], [1, 1, 3], [2, 3, 1]):
        texts = [[*text, token] for text, token in zip(texts, newest.tolist(), strict=True)]
        seen: list[Tensor] = []

        def pick(i: int, logits_BV: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(logits_BV)
            return logits_BV.argmax(-1)

        drafts = drafting.propose(model, newest, state, 2, pick)
        for row, text in enumerate(texts):
            tokens = torch.tensor(text)
            (module,) = model.model.mtp_modules()
            hidden = model.hidden(tokens)[:-1]
            embedded = model.model.embed_tokens(tokens[1:])
            first = layer_output(model, module.join(embedded, hidden))
            assert_close(seen[0][row], model.lm_head(first)[-1], atol=1e-4, rtol=1e-4)
            again = module.join(model.model.embed_tokens(drafts[row, :1]), first[-1:])
            chained = layer_output(model, torch.cat([module.join(embedded, hidden), again]))
            assert_close(seen[1][row], model.lm_head(chained)[-1], atol=1e-4, rtol=1e-4)
        logits_BMV, keep = drafting.check(model, newest, drafts, state)
        for row, text in enumerate(texts):
            full = model(torch.tensor([*text, *drafts[row].tolist()]))[-3:]
            assert_close(logits_BMV[row], full, atol=1e-4, rtol=1e-4)
        texts = [[*text, *draft[: n - 1]] for text, draft, n in zip(texts, drafts.tolist(), kept, strict=True)]
        state, newest = keep(torch.tensor(kept)), (newest + 5) % 24
        assert state.cache.lengths_B.tolist() == [len(text) for text in texts]


def layer_output(model: DeepseekV3, joined_TD: Tensor) -> Tensor:
    """h^1 of rows that have been joined already."""
    (module,) = model.model.mtp_modules()
    ragged = lay_out((len(joined_TD),), joined_TD.device)
    return module.shared_head.norm(module(joined_TD, model.model.rotations(ragged.positions_T), ragged))


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "max_batch"), [(1, 256), (3, 256), (2, 2)])
def test_greedy_output_is_the_one_without(extra: int, max_batch: int) -> None:
    model = seeded(replace(MTP, num_nextn_predict_layers=2))
    sampling = replace(GREEDY, max_new_tokens=25)
    plain, drafted = an_engine(0, model), an_engine(extra, model, max_batch)
    for a, b in zip(drawn(plain, PROMPTS, 2, sampling), drawn(drafted, PROMPTS, 2, sampling), strict=True):
        for one, two in zip(a.rollouts, b.rollouts, strict=True):
            assert (one.tokens, one.finish_reason) == (two.tokens, two.finish_reason)
            assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), atol=1e-5, rtol=0)
    assert plain.drafts() == (0, 0)
    proposed, accepted = drafted.drafts()
    assert 0 <= accepted < proposed


@torch.no_grad()
def exact(model: DeepseekV3, prompt: Sequence[int], sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every completion, from one full forward pass over all of them."""
    every = list(itertools.product(range(model.config.vocab_size), repeat=sampling.max_new_tokens))
    logits = model(torch.tensor([[*prompt, *tokens] for tokens in every]))[:, len(prompt) - 1 : -1]
    table = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        best, order = table.sort(-1, descending=True)
        outside = best.cumsum(-1) - best >= sampling.top_p
        table = table.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
        table = table / table.sum(-1, keepdim=True)
    found = {}
    for tokens, own in zip(every, table.gather(2, torch.tensor(every).unsqueeze(2)).squeeze(2), strict=True):
        size = tokens.index(EOS) + 1 if EOS in tokens else len(tokens)
        found[tokens[:size]] = float(own[:size].prod())
    assert sum(found.values()) == pytest.approx(1.0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "temperature", "top_p"), [(1, 1.0, 1.0), (3, 1.0, 1.0), (2, 0.7, 0.9)])
def test_whole_completions_have_their_exact_probabilities(extra: int, temperature: float, top_p: float) -> None:
    model = seeded(replace(MTP, vocab_size=5))
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=4, seed=3)
    asked, draws = Prompt(id="q", tokens=(2, 3), text="", meta={}), 8000
    engine = an_engine(extra, model, max_batch=4000)
    [group] = engine.generate([asked], draws, sampling)
    counts, probs = Counter(rollout.tokens for rollout in group.rollouts), exact(model, asked.tokens, sampling)
    assert all(probs.get(tokens, 0.0) > 0 for tokens in counts), "nothing outside the nucleus"
    assert fits([counts[tokens] for tokens in probs], [draws * p for p in probs.values()])
    distance = sum(abs(counts[tokens] / draws - p) for tokens, p in probs.items()) / 2
    proposed, accepted = engine.drafts()
    print(f"{len(probs)} completions, total variation {distance:.4f}, {accepted / proposed:.2f} of the drafts accepted")
    for tokens, p in probs.items():  # the log-probs are the target's, not the drafts'
        for rollout in [rollout for rollout in group.rollouts if rollout.tokens == tokens][:2]:
            assert sum(rollout.logprobs) == pytest.approx(torch.tensor(p).log().item(), abs=1e-4)


@pytest.mark.slow
def test_a_rollout_does_not_depend_on_its_batch() -> None:
    def flat(groups: Sequence[Group]) -> list[Rollout]:
        return [rollout for group in groups for rollout in group.rollouts]

    together = drawn(an_engine(2), PROMPTS, 10, SAMPLING)
    waves = drawn(an_engine(2, max_batch=7), PROMPTS, 10, SAMPLING)
    alone = [drawn(an_engine(2), [asked], 10, SAMPLING)[0] for asked in PROMPTS]
    longer = drawn(an_engine(2), PROMPTS, 10, replace(SAMPLING, max_new_tokens=15))
    for other in (waves, alone):
        for a, b in zip(flat(together), flat(other), strict=True):
            assert (a.tokens, a.seed, a.finish_reason) == (b.tokens, b.seed, b.finish_reason)
            assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5, rtol=0)
    assert all(b.tokens[:12] == a.tokens for a, b in zip(flat(together), flat(longer), strict=True))
    assert {rollout.finish_reason for rollout in flat(together)} == {"stop", "length"}


def test_rollouts_end_at_the_end_token_or_at_the_limit() -> None:
    engine = an_engine(3)
    rollouts = [rollout for group in drawn(engine, PROMPTS, 40, SAMPLING) for rollout in group.rollouts]
    assert engine.finished() == len(rollouts) == 120
    for rollout in rollouts:
        stopped = rollout.finish_reason == "stop"
        assert stopped == (rollout.tokens[-1] == EOS) and EOS not in rollout.tokens[:-1]
        assert len(rollout.logprobs) == len(rollout.tokens) and (stopped or len(rollout.tokens) == 12)


def test_what_lies_behind_the_end_of_a_rollout_counts_neither_as_drafted_nor_as_accepted() -> None:
    """With eight drafts and room for one token more, one draft can be of use."""
    engine = an_engine(8)
    [group] = engine.generate(PROMPTS[:1], 4, replace(GREEDY, max_new_tokens=2))
    proposed, accepted = engine.drafts()
    going = sum(len(rollout.tokens) == 2 for rollout in group.rollouts)
    assert proposed == going and accepted <= going


def test_one_new_token_needs_no_draft() -> None:
    engine = an_engine(2)
    groups = drawn(engine, PROMPTS, 3, replace(SAMPLING, max_new_tokens=1))
    assert {len(rollout.tokens) for group in groups for rollout in group.rollouts} == {1}
    assert engine.drafts() == (0, 0)


def test_refuses_a_model_without_modules() -> None:
    with pytest.raises(ValueError, match="speculative_tokens=1: the model has no MTP module; give 0"):
        an_engine(1, seeded(CONFIG))
