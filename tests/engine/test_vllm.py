"""The vLLM engine as the loop uses it: from other threads, resumed in a fresh process, cut, stopped, interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from rlkit.engine.base import rollout_seed
from rlkit.engine.vllm import VllmEngine, import_vllm
from rlkit.engine.whole import HalfLoadedError
from rlkit.types import Group, Prompt, Sampling
from tests.hf_folders import make, save
from tests.hf_reference import ANSWER, BOS, EOS, PAD, THINK, VOCAB, HfTrainer, make_model, save_checkpoint

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=24, seed=7)
PROMPTS = [Prompt(id=f"p{i}", tokens=tuple(range(5 + i, 12 + 2 * i)), text="", meta={}) for i in range(12)]
ROOT = Path(__file__).resolve().parents[2]
TURN_END = 70
"""An end token with "special": false, as some instruction-tuned models have for the end of a turn."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokens end a completion: a special one of config.json, and an ordinary one of generation_config.json."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(make_model(), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, TURN_END]}))
    return folder


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[VllmEngine]:
    """Started in a thread and used from others, as in a threaded Ray actor."""
    children = psutil.Process().children(recursive=True)
    with ThreadPoolExecutor(1) as pool:
        engine = pool.submit(
            VllmEngine, checkpoint, max_model_len=128, max_num_seqs=64, kv_cache_gib=0.25, threads=1
        ).result()
    yield engine
    engine.close()
    assert psutil.Process().children(recursive=True) == children


def drawn(engine: VllmEngine, prompts: list[Prompt], n: int, sampling: Sampling) -> list[Group]:
    """Groups in the order of the prompts; they come as they are finished."""
    groups = {group.prompt.id: group for group in engine.generate(prompts, n, sampling)}
    return [groups[prompt.id] for prompt in prompts]


def bits(groups: list[Group]) -> list[tuple[str, tuple[int, ...], list[str], str, int]]:
    return [
        (g.prompt.id, r.tokens, [p.hex() for p in r.logprobs], r.finish_reason, r.seed)
        for g in groups
        for r in g.rollouts
    ]


@pytest.mark.slow
def test_rollouts_are_the_same_bits_in_a_fresh_process_and_nothing_is_printed(engine, checkpoint):
    """The engine here has drawn and loaded other things before; the fresh one reads the weights from disk."""
    other = HfTrainer(make_model(seed=3))
    engine.load(other.weights(), 1)
    changed = bits(drawn(engine, PROMPTS, 4, SAMPLING))
    engine.load(HfTrainer(make_model()).weights(), 2)
    expected = bits(drawn(engine, PROMPTS, 4, SAMPLING))
    assert expected != changed
    program = (
        "import json, sys; from pathlib import Path; from rlkit.engine.vllm import VllmEngine\n"
        "from tests.engine.test_vllm import PROMPTS, SAMPLING, bits, drawn\n"
        "engine = VllmEngine(Path(sys.argv[1]), max_model_len=128, max_num_seqs=64, kv_cache_gib=0.25, threads=1)\n"
        "print(json.dumps(bits(drawn(engine, PROMPTS, 4, SAMPLING))))\n"
        "engine.close()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint)], cwd=ROOT, capture_output=True, text=True, timeout=800
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads(run.stdout) == json.loads(json.dumps(expected))


@pytest.mark.slow
def test_every_rollout_has_its_own_seed_whatever_the_order_of_prompts(engine):
    groups = drawn(engine, PROMPTS, 4, SAMPLING)
    seeds = [[rollout_seed(SAMPLING.seed, p.id, i) for i in range(4)] for p in PROMPTS]
    assert [[r.seed for r in g.rollouts] for g in groups] == seeds
    assert len({g.rollouts[i].tokens for g in groups for i in range(4)}) == 48
    backwards = drawn(engine, PROMPTS[::-1], 4, SAMPLING)[::-1]
    for group, other in zip(groups, backwards, strict=True):
        assert group.prompt == other.prompt
        assert [r.tokens[0] for r in group.rollouts] == [r.tokens[0] for r in other.rollouts]


@pytest.mark.slow
def test_an_end_token_ends_a_rollout_and_leaves_the_text_with_the_special_ones(engine):
    rollouts = [r for g in drawn(engine, PROMPTS, 16, SAMPLING) for r in g.rollouts]
    seen = {t for r in rollouts for t in r.tokens}
    assert {BOS, EOS, PAD, THINK, ANSWER} <= seen, "the case is not covered"
    names = {THINK: "<think>", ANSWER: "<answer>", **{i: f"w{i}" for i in range(5, VOCAB)}}
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.tokens) <= 24
        stopped = rollout.finish_reason == "stop"
        ends = [place for place, token in enumerate(rollout.tokens) if token in (EOS, TURN_END)]
        assert ends == ([len(rollout.tokens) - 1] if stopped else [])
        assert stopped or (rollout.finish_reason == "length" and len(rollout.tokens) == 24)
        written = rollout.tokens[:-1] if stopped else rollout.tokens
        assert rollout.text == " ".join(names[t] for t in written if t in names)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    assert {r.tokens[-1] for r in rollouts if r.finish_reason == "stop"} == {EOS, TURN_END}


@pytest.mark.slow
def test_rollouts_carry_the_version_of_their_weights(engine, checkpoint):
    for version in (5, 6):
        engine.load(HfTrainer(make_model()).weights(), version)
        (group,) = drawn(engine, PROMPTS[:1], 2, SAMPLING)
        assert [r.weight_version for r in group.rollouts] == [version] * 2


@pytest.mark.slow
def test_after_a_load_that_broke_off_nothing_is_answered(engine, checkpoint):
    def half():
        for number, weight in enumerate(HfTrainer(make_model(seed=3)).weights()):
            if number == 9:
                raise ConnectionError("the sender is gone")
            yield weight

    with pytest.raises(ConnectionError):
        engine.load(half(), 7)
    for ask in (
        lambda: drawn(engine, PROMPTS[:1], 1, SAMPLING),
        lambda: engine.logprobs([(5, 6, 7)]),
        lambda: engine.trace((5, 6, 7)),
    ):
        with pytest.raises(HalfLoadedError, match=r"version 7 broke off \(ConnectionError: the sender is gone\)"):
            ask()
    for version in (8, 9):  # vLLM's first reload after the break leaves tensors of the one before
        engine.load(HfTrainer(make_model()).weights(), version)
    [group] = drawn(engine, PROMPTS[:1], 1, SAMPLING)
    assert group.rollouts[0].weight_version == 9


@pytest.mark.slow
def test_finished_counts_up_while_generate_runs(engine):
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):  # not a busy loop, which would take the interpreter from the engine
            seen.add(engine.finished())

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        drawn(engine, PROMPTS, 16, SAMPLING)  # 192 rollouts, 64 at a time
        done.set()
        watching.result()
    assert engine.finished() == 192
    assert len(seen & set(range(1, 192))) > 5


@pytest.mark.slow
def test_calls_from_many_threads_wait_for_each_other(engine):
    parts = [PROMPTS[i : i + 3] for i in range(0, 12, 3)]
    expected = [bits(drawn(engine, part, 4, SAMPLING)) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        groups = list(pool.map(lambda part: drawn(engine, part, 4, SAMPLING), parts))
    assert [bits(g) for g in groups] == expected


@pytest.mark.slow
def test_more_prompt_tokens_than_fit_one_step(engine):
    """A prompt cut in two whose request has a seed ends the CPU build; 64 x 120 tokens fit no step of 4,096."""
    long = [Prompt(id=f"l{i}", tokens=tuple((i + j) % VOCAB for j in range(120)), text="", meta={}) for i in range(100)]
    groups = drawn(engine, long, 1, Sampling(temperature=1.0, top_p=1.0, max_new_tokens=8, seed=0))
    assert len(groups) == 100


@pytest.mark.slow
def test_too_long_is_an_error_that_names_the_numbers(engine):
    long = Prompt(id="long", tokens=(5,) * 105, text="", meta={})
    with pytest.raises(ValueError, match=r"prompt 'long' has 105 tokens; with 24 new ones .* max_model_len=128"):
        drawn(engine, [PROMPTS[0], long], 1, SAMPLING)
    fits = Prompt(id="fits", tokens=(5,) * 104, text="", meta={})
    assert len(drawn(engine, [fits], 1, SAMPLING)) == 1
    with pytest.raises(ValueError, match="sequence 1 has 128 tokens"):
        engine.logprobs([(5, 6), (5,) * 128])
    assert len(engine.logprobs([(5,) * 127])[0]) == 126


@pytest.mark.slow
def test_an_unknown_token_id_is_an_error(engine):
    outside = Prompt(id="outside", tokens=(5, VOCAB), text="", meta={})
    with pytest.raises(ValueError, match=r"prompt 'outside' has token ids from 5 to 96, .* vocab_size is 96"):
        drawn(engine, [*PROMPTS, outside], 2, SAMPLING)


@pytest.mark.slow
def test_an_interrupted_call_leaves_nothing_behind(engine, monkeypatch):
    expected = bits(drawn(engine, PROMPTS[:2], 2, SAMPLING))
    step, left = engine._engine.step, iter(range(5))

    def interrupted() -> list[object]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine._engine, "step", interrupted)
        drawn(engine, PROMPTS, 4, SAMPLING)
    assert bits(drawn(engine, PROMPTS[:2], 2, SAMPLING)) == expected
    assert engine.finished() == 4


@pytest.mark.slow
def test_groups_come_while_others_are_sampled_and_a_consumer_may_leave(engine):
    """64 sequences fit at once, so the first groups are done before the last have begun."""
    expected = bits(drawn(engine, PROMPTS[:2], 2, SAMPLING))
    groups = engine.generate(PROMPTS, 16, SAMPLING)
    next(iter(groups))
    assert engine.finished() < 12 * 16
    del groups
    assert bits(drawn(engine, PROMPTS[:2], 2, SAMPLING)) == expected


@pytest.mark.slow
def test_the_process_keeps_its_own_settings(engine):
    """vLLM replaces torch.set_num_threads, preloads libraries and turns torch.compile off; none of it may stay."""
    before = torch.get_num_threads()
    drawn(engine, PROMPTS[:1], 1, SAMPLING)
    assert torch.get_num_threads() == before
    try:
        torch.set_num_threads(before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert "libgomp" not in os.environ.get("LD_PRELOAD", "")
    assert "TORCHDYNAMO_DISABLE" not in os.environ


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="this CPU has no AMX tiles")
@pytest.mark.parametrize("head", [64, 128])
def test_bf16_heads_that_use_the_tiles_of_amx(head: int, tmp_path: Path) -> None:
    """In a process of its own: without leave from the kernel it dies of SIGILL."""
    save(make("llama", hidden_size=2 * head, head_dim=head), tmp_path)
    program = (
        "import sys; from pathlib import Path; from rlkit.engine.vllm import VllmEngine\n"
        "engine = VllmEngine(Path(sys.argv[1]), dtype='bfloat16', max_model_len=64, kv_cache_gib=0.1, threads=1)\n"
        "print(len(engine.logprobs([[5, 6, 7, 8]])[0]))\n"
        "engine.close()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert (run.returncode, run.stdout) == (0, "3\n"), run.stderr


def test_without_vllm_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RuntimeError, match=r"requirements/cpu\.txt .*engine=torch"):
        import_vllm()


def test_a_checkpoint_without_an_end_token_is_refused(checkpoint, tmp_path):
    (tmp_path / "tokenizer.json").write_text((checkpoint / "tokenizer.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": None}))
    with pytest.raises(ValueError, match="eos_token_id is missing"):
        VllmEngine(tmp_path, max_model_len=128, threads=1)
