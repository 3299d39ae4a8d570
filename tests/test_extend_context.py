"""Extending a context: what a stage starts from, what it becomes, what is refused before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes import extend_context
from rlkit.config.compose import ConfigError, load_config
from rlkit.config.runs import ExtendContextRun
from rlkit.errors import UserError
from rlkit.extend_context import extended, stage_folder, stage_run, write_extended
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.config import Yarn
from tests.e2e.runs import LOCAL
from tests.model.tiny import BASE, relative, seeded

SHORT = replace(BASE, max_position_embeddings=64)


def load(*overrides: str) -> ExtendContextRun:
    return load_config("extend_context", ExtendContextRun, overrides)


def stages(*pairs: tuple[int, float]) -> str:
    written = ", ".join(f"{{length: {length}, factor: {factor}, source: '', tasks: {{}}}}" for length, factor in pairs)
    return f"stages=[{written}]"


def test_the_factor_counts_from_the_original_context() -> None:
    """64 tokens times 4 is 256; times 8, later, is 512 and not 2,048."""
    once = extended(SHORT, 4)
    expected = Yarn(factor=4, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0)
    assert once == replace(SHORT, rope_scaling=expected, max_position_embeddings=256)
    assert extended(once, 8) == replace(SHORT, rope_scaling=replace(expected, factor=8), max_position_embeddings=512)
    assert extended(once, 4) == once
    v3 = extended(DeepseekV3Config(), 40)
    assert v3.max_position_embeddings == 163840
    assert v3.rope_scaling == replace(expected, factor=40, original_max_position_embeddings=4096)
    other = replace(expected, factor=2, mscale=0.7, mscale_all_dim=0.7, beta_fast=8)
    kept = extended(replace(SHORT, rope_scaling=other), 4).rope_scaling
    assert kept == replace(other, factor=4), "a model keeps the YaRN it was trained with"
    with pytest.raises(ValueError, match=r"rope_scaling.factor=0.5"):
        extended(SHORT, 0.5)


def test_an_extended_checkpoint_is_the_same_weights_with_other_positions(tmp_path: Path) -> None:
    seeded(SHORT).save_checkpoint(tmp_path / "base", dtype="fp32")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "somebody_s_key": 7}))
    write_extended(tmp_path / "base", tmp_path / "run" / "initial", 4)
    before, after = (DeepseekV3.from_checkpoint(tmp_path / name) for name in ("base", "run/initial"))
    assert after.config == extended(before.config, 4)
    states = before.state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in after.state_dict().items())
    tokens_T = torch.arange(60) % 96
    with torch.no_grad():
        assert relative(after(tokens_T), before(tokens_T)) > 1e-2
    written = json.loads((tmp_path / "run" / "initial" / "config.json").read_text())
    assert written["somebody_s_key"] == 7 and (tmp_path / "run" / "initial" / "tokenizer.json").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["initial"]
    write_extended(tmp_path / "base", tmp_path / "run" / "initial", 2)
    assert DeepseekV3Config.from_folder(tmp_path / "run" / "initial") == after.config, "it was there already"
    seeded(SHORT, seed=1).save_checkpoint(tmp_path / "another", dtype="fp32")
    with pytest.raises(UserError, match=r"initial was made from .*base, and not from .*another as it is now"):
        write_extended(tmp_path / "another", tmp_path / "run" / "initial", 4)
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match="made from"):
        write_extended(tmp_path / "base", tmp_path / "run" / "initial", 4)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        write_extended(tmp_path / "nowhere", tmp_path / "other", 2)
    assert not (tmp_path / "other").exists()


def test_v3_takes_as_many_tokens_a_step_in_both_phases(tmp_path: Path) -> None:
    """1,920 samples of 32K, then 480 of 128K (arXiv:2412.19437, section 4.3)."""
    seeded(replace(BASE, max_position_embeddings=4096)).save_checkpoint(tmp_path, dtype="fp32")
    cfg = load("context=v3_128k", "output_dir=there")
    for number in range(2):
        write_extended(tmp_path, tmp_path / str(number), cfg.stages[number].factor)
    first, second = (stage_run(cfg, number, tmp_path / str(number)) for number in range(2))
    assert (first.sft.batch_size, second.sft.batch_size) == (1920, 480)
    assert (first.engine.max_model_len, second.engine.max_model_len) == (32768, 131072)
    assert (first.trainer.max_tokens, second.trainer.max_tokens) == (32768, 131072)
    assert first.sft.steps == second.sft.steps == 1000 and first.sft.schedule.lr == 7.3e-6
    assert [first.output_dir, second.output_dir] == [Path("there/1-32768"), Path("there/2-131072")]
    assert stage_folder(cfg, 1) == second.output_dir
    assert first.model.path == str(tmp_path / "0") and first.data == second.data == cfg.data
    assert (first.stages, second.stages) == (cfg.stages[:1], cfg.stages[1:]), "a later stage may still change"


def test_a_stage_has_samples_of_its_own(tmp_path: Path) -> None:
    seeded(SHORT).save_checkpoint(tmp_path, dtype="fp32")
    own = "{length: 32, factor: 1, source: '', tasks: {gcd: {}}}, {length: 64, factor: 1, source: b.jsonl, tasks: {}}"
    cfg = load(f"stages=[{own}]", "evaluation.sampling.max_new_tokens=16")
    first, second = (stage_run(cfg, number, tmp_path) for number in range(2))
    assert (first.data.source, first.data.tasks) == ("reasoning_gym", {"gcd": {}})
    assert (second.data.source, second.data.tasks) == ("b.jsonl", cfg.data.tasks)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([stages((256, 2), (256, 4))], r"stages: lengths \[256, 256\] must rise"),
        ([stages((512, 2), (256, 4))], r"stages: lengths \[512, 256\] must rise"),
        (["stages=[]"], r"stages: lengths \[\] must rise"),
        ([stages((256, 2), (384, 4)), "sft.batch_size=4"], r"stages\[1\].length=384: sft.batch_size=4 samples of 256"),
        (["stages=[{length: 256, factr: 2, source: '', tasks: {}}]"], r"stages\[0\].factr is not a key .*'factor'"),
        (["stages=[{length: 256}]"], r"stages.0.factor is missing"),
        (["stages=[256]"], r"stages\[0\]=256 is a group of keys"),
        (["context=toyy"], r"context=toyy is unknown; there are toy, v3_128k \(did you mean 'toy'"),
    ],
)
def test_refuses_stages_that_cannot_follow_each_other(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*overrides)


def test_nothing_starts_before_all_stages_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second stage reaches beyond its factor: the first one is not even begun."""
    seeded(SHORT).save_checkpoint(tmp_path / "base", dtype="fp32")
    with pytest.raises(SystemExit):
        extend_context.main([*LOCAL, f"output_dir={tmp_path}/run"])
    assert "model.path is empty" in capsys.readouterr().err
    paths = [f"model.path={tmp_path}/base", f"output_dir={tmp_path}/run"]
    overrides = [*LOCAL, *paths, "evaluation.sampling.max_new_tokens=16"]
    with pytest.raises(SystemExit):
        extend_context.main([*overrides, stages((128, 2), (512, 4)), "--cfg", "job"])
    printed = capsys.readouterr().err
    assert "stages[1].length=512: the original context times stages[1].factor=4 is 256 tokens" in printed
    extend_context.main([*overrides, stages((128, 2), (256, 4)), "--cfg", "job"])
    printed = capsys.readouterr().out
    assert printed.count("nothing was started") == 2 and printed.count("200 steps x 64 dem") == 1
    assert printed.count("200 steps x 32 demonstrations") == 1
    assert not (tmp_path / "run").exists()
