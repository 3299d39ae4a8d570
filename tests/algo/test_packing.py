from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.algo import group_advantages, pack_demonstrations, pack_rollouts, shard
from rlkit.algo.packing import _empty_like
from rlkit.types import Batch, Demonstration, Pack, PolicyPack, Prompt, Rollout, Score, ScoredGroup


def group(prompt: list[int], completions: list[list[int]], values: list[float | None]) -> ScoredGroup:
    rollouts = tuple(
        Rollout(
            tokens=tuple(tokens),
            logprobs=tuple(-0.01 * token for token in tokens),
            text="",
            finish_reason="stop",
            weight_version=0,
            seed=0,
        )
        for tokens in completions
    )
    return ScoredGroup(
        prompt=Prompt(id=str(prompt), tokens=tuple(prompt), text="", meta={}),
        rollouts=rollouts,
        scores=tuple(Score(value=value, reason="") for value in values),
    )


GROUPS = [
    group([1, 2], [[10, 11, 12], [13]], [1.0, 0.0]),
    group([3], [[14, 15], [16, 17, 18, 19], [20]], [0.0, None, 1.0]),
]
ADVANTAGES = [torch.tensor([0.5, -0.5]), torch.tensor([-0.7, 0.0, 0.7])]


def samples(batch: Batch) -> dict[tuple[int, ...], tuple[list[float], ...]]:
    """Every sample by its tokens, with the numbers that go with them."""
    found = {}
    for pack in batch.packs:
        assert isinstance(pack, PolicyPack)
        rows = zip(
            *(
                t.split(list(pack.lengths))
                for t in (pack.tokens_T, pack.weights_T, pack.advantages_T, pack.old_logprobs_T)
            ),
            strict=True,
        )
        for tokens, *numbers in rows:
            found[tuple(tokens.tolist())] = tuple(row.tolist() for row in numbers)
    return found


def test_tokens_numbers_and_weights_stay_aligned() -> None:
    [batch] = pack_rollouts(GROUPS, ADVANTAGES, max_tokens=8, temperature=0.9)
    found = samples(batch)
    # the rollout without a verdict is gone, and it does not count in the weights: 3 + 1 + 2 + 1 trained tokens
    assert set(found) == {(1, 2, 10, 11, 12), (1, 2, 13), (3, 14, 15), (3, 20)}
    weights, advantages, old = found[1, 2, 10, 11, 12]
    assert weights == pytest.approx([0, 0, 1 / 7, 1 / 7, 1 / 7])
    assert advantages == pytest.approx([0, 0, 0.5, 0.5, 0.5])
    assert old == pytest.approx([0, 0, -0.10, -0.11, -0.12])
    assert (batch.num_samples, batch.num_tokens, batch.temperature) == (4, 13, 0.9)


def test_rows_stay_below_the_limit_unless_one_sample_is_longer() -> None:
    [batch] = pack_rollouts(GROUPS, ADVANTAGES, max_tokens=6, temperature=1.0)
    assert all(sum(pack.lengths) <= 6 for pack in batch.packs)
    [batch] = pack_rollouts(GROUPS, ADVANTAGES, max_tokens=1, temperature=1.0)
    assert sorted(pack.lengths for pack in batch.packs) == [(2,), (3,), (3,), (5,)]


def test_sequence_weights_count_every_rollout_alike() -> None:
    [batch] = pack_rollouts(GROUPS, ADVANTAGES, max_tokens=100, temperature=1.0, aggregate="sequence")
    for weights, *_ in samples(batch).values():
        assert sum(weights) == pytest.approx(1 / 4)


def test_minibatches_deal_every_rollout_once_and_weigh_each_batch_to_one() -> None:
    batches = pack_rollouts(GROUPS, ADVANTAGES, max_tokens=100, temperature=1.0, num_batches=2, seed=3)
    assert [batch.num_samples for batch in batches] == [2, 2]
    assert len({tokens for batch in batches for tokens in samples(batch)}) == 4
    for batch in batches:
        assert sum(float(pack.weights_T.sum()) for pack in batch.packs) == pytest.approx(1)
    again = pack_rollouts(GROUPS, ADVANTAGES, max_tokens=100, temperature=1.0, num_batches=2, seed=3)
    assert [samples(batch).keys() for batch in again] == [samples(batch).keys() for batch in batches]


def test_demonstrations_train_completions_only() -> None:
    batch = pack_demonstrations([Demonstration.of([1, 2], [3, 4]), Demonstration.of([5], [6, 7, 8])], max_tokens=100)
    [pack] = batch.packs
    assert pack.tokens_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert pack.weights_T.tolist() == pytest.approx([0, 0, 0.2, 0.2, 0, 0.2, 0.2, 0.2])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=2, max_size=12),
    max_tokens=st.integers(3, 40),
    ranks=st.integers(1, 4),
)
def test_sharding_keeps_every_sample_and_every_weight(
    sizes: list[tuple[int, int]], max_tokens: int, ranks: int
) -> None:
    # completion ids are unique, so a sample that is lost, doubled or mixed up shows
    completions = [[1000 * i + j for j in range(1, size + 1)] for i, (_, size) in enumerate(sizes)]
    groups = [group([9] * p, [c], [1.0]) for (p, _), c in zip(sizes, completions, strict=True)]
    [batch] = pack_rollouts(groups, [torch.ones(1)] * len(groups), max_tokens=max_tokens, temperature=1.0)
    shares = shard(batch, ranks)
    assert len({len(share.packs) for share in shares}) == 1, "ranks with different numbers of packs would hang"
    together: dict[tuple[int, ...], tuple[list[float], ...]] = {}
    for share in shares:
        for tokens, numbers in samples(share).items():
            if sum(numbers[0]):
                assert tokens not in together
                together[tokens] = numbers
        for pack in share.packs:
            assert sum(pack.lengths) <= max(max_tokens, *(p + c for p, c in sizes))
    assert together == samples(batch)


def test_a_rank_without_work_gets_a_pack_of_no_weight() -> None:
    [batch] = pack_rollouts(GROUPS[:1], [ADVANTAGES[0]], max_tokens=100, temperature=1.0)
    shares = shard(batch, 3)
    assert [float(share.packs[0].weights_T.sum()) for share in shares] == pytest.approx([0.75, 0.25, 0.0])


def test_advantages_of_a_group_reach_their_rollouts() -> None:
    advantages = [group_advantages([float("nan") if s.value is None else s.value for s in g.scores]) for g in GROUPS]
    [batch] = pack_rollouts(GROUPS, advantages, max_tokens=100, temperature=1.0)
    root_half = 0.5**0.5
    assert samples(batch)[1, 2, 13][1] == pytest.approx([0, 0, -root_half])
    assert samples(batch)[3, 20][1] == pytest.approx([0, root_half])


def test_an_empty_pack_is_where_its_samples_are() -> None:
    """On the meta device, which stands for any that is not the CPU."""
    sample = Pack(tokens_T=torch.ones(3, device="meta"), lengths=(3,), weights_T=torch.ones(3, device="meta"))
    empty = _empty_like(sample)
    assert empty.tokens_T.device.type == empty.weights_T.device.type == "meta" and empty.lengths == (1,)
