"""What a reward model cannot be made from, or cannot judge, is refused before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from recipes import grpo, reward_model
from rlkit.config.compose import known_keys, load_config
from rlkit.config.reward_model import RewardModelRun
from rlkit.data.tokenizer import save_tokenizer, train_tokenizer
from rlkit.model.scorer import write_scorer
from tests.model.tiny import BASE, seeded
from tests.run.test_errors import refusal

TRAINER = ["cluster=local", "trainer=torch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, a reward model made from it, one with another tokenizer, and preferences."""
    folder = tmp_path_factory.mktemp("errors")
    tokenizer, other = (train_tokenizer([text], 300) for text in ("3 + 4 = 7", "nothing of the kind, no sum at all"))
    config = replace(BASE, vocab_size=max(len(tokenizer), len(other)), bos_token_id=0, eos_token_id=1)
    seeded(replace(config, max_position_embeddings=256)).save_checkpoint(folder / "language", dtype="fp32")
    save_tokenizer(tokenizer, folder / "language")
    for name, its in (("scorer", tokenizer), ("stranger", other)):
        write_scorer(folder / "language", folder / name, seed=0)
        save_tokenizer(its, folder / name)
    seeded(replace(config, max_position_embeddings=64)).save_checkpoint(folder / "short_language", dtype="fp32")
    write_scorer(folder / "short_language", folder / "short", seed=0)
    save_tokenizer(tokenizer, folder / "short")
    rows = [{"question": f"{i} + 1", "chosen": f"{i + 1}", "rejected": "no", "label": 7} for i in range(80)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: object, overrides: Sequence[str], words: Sequence[str]
) -> None:
    if recipe is grpo:
        printed = refusal(capsys, tmp_path, *overrides)
    else:
        with pytest.raises(SystemExit) as leaving:
            reward_model.main([*overrides, f"output_dir={tmp_path}/run"])
        printed = capsys.readouterr().err
        assert leaving.value.code == 2 and printed.startswith("error: ") and "Traceback" not in printed
        assert not (tmp_path / "run").exists(), "nothing may have been written"
    for word in words:
        assert word in printed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["model.path=''", "starts from the checkpoint of an SFT run"]),
        (["model.path={}/scorer"], ["is a reward model: it scores and cannot write"]),
        (["model.path={}/nowhere"], ["no such folder"]),
        (["model=hf", "model.path={}/language"], ["model.kind='hf'", "our own class alone"]),
        (["reward_model.kind=ranked"], ["reward_model.kind='ranked'", "pairwise or pointwise"]),
        (["reward_model.batch_size=0"], ["reward_model.batch_size=0", "at least 1"]),
        (["engine=torch"], ["engine", "reward_model"]),
        (["model.path={}/language", "data={}/rows.jsonl", "reward_model.chosen_column=best"],
         ["reward_model.chosen_column='best'", "only question, chosen, rejected, label"]),
        (["model.path={}/language", "data={}/rows.jsonl", "data.prompt_column=text"], ["data.prompt_column='text'"]),
        (["model.path={}/language", "data={}/rows.jsonl", "reward_model.kind=pointwise",
          "reward_model.completion_column=chosen"], ["'label' is 7; a label is true, false"]),
        (["model.path={}/language", "reward_model.max_length=999"], ["reward_model.max_length=999", "embeddings=256"]),
        (["model.path={}/language", "trainer=deepspeed", "cluster=ray", "trainer.num_ranks=2", "trainer.pipeline=2"],
         ["trainer.pipeline=2 with recipe reward_model", "set trainer.pipeline=1"]),
        (["model.path={}/language", "trainer=deepspeed", "trainer.dtype=fp8"],
         ["trainer.dtype=fp8 with recipe reward_model", "set trainer.dtype=bf16"]),
        (["model.path={}/language", "trainer=deepspeed", "cluster=ray", "trainer.num_ranks=3"],
         ["reward_model.batch_size=64 cannot be dealt evenly to trainer.num_ranks=3"]),
        (["model.path={}/language", "data=gsm8k"], ["reward_model.chosen_column='chosen'", "no such column"]),
    ],
)  # fmt: skip
def test_what_no_reward_model_can_be_made_from(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    given = [word.replace("{}", str(folder)) for word in overrides]
    refused(capsys, tmp_path, reward_model, [*TRAINER, "data.eval_size=20", "data.train_size=50", *given], words)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("model:{}/nowhere", ["no such folder"]),
        (
            "model:{}/language",
            ["language: the folder holds a language model, which has no head that scores", "train one"],
        ),
        ("model:{}/stranger", ["stranger: its tokenizer or chat template is not the policy's"]),
        ("model:{}/short", ["engine.max_model_len=192 is more than its max_position_embeddings=64"]),
    ],
)
def test_what_cannot_judge_a_policy(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, reward: str, words: list[str]
) -> None:
    """By itself, and as a part of a composite."""
    name, policy = reward.replace("{}", str(folder)), f"model.path={folder}/language"
    refused(capsys, tmp_path, grpo, [policy, f"reward={name}"], words)
    kwargs = f"reward.kwargs={{rewards: [[number, 0], ['{name}', 1]]}}"
    refused(capsys, tmp_path, grpo, [policy, "reward=composite", kwargs], words)


def test_settings_of_a_model_are_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capsys, tmp_path, grpo, ["reward=model:x", "reward.kwargs.reads=all"], ["reads='all' is unknown"])
    refused(capsys, tmp_path, grpo, ["model.path=x", "reward=model:x", "reward.kwargs.wide=1"], ["no setting 'wide'"])


def test_a_dry_run_checks_all_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*TRAINER, f"model.path={folder}/language", f"data={folder}/rows.jsonl", "data.eval_size=20"]
    reward_model.main([*words, "dry_run=true", f"output_dir={tmp_path}/run"])
    printed = capsys.readouterr().out
    assert "60 to train on, 20 held out" in printed and "the data and the model are in order" in printed
    assert not (tmp_path / "run").exists()


def test_a_reward_model_has_the_keys_that_it_uses() -> None:
    keys = {key for key, _ in known_keys(RewardModelRun)}
    assert not {
        key for key in keys if key.startswith(("engine.", "reward.", "parity.", "evaluation.", "algo.", "sft."))
    }
    cfg = load_config("reward_model", RewardModelRun, ["model.path=x", "trainer.num_ranks=2"])
    assert (cfg.demand.engines, cfg.demand.ranks, cfg.demand.processes) == (0, 2, 2)
