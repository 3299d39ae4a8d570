"""The context-extension recipe at toy lengths, as a user starts it: 64 tokens -> 96 -> 192."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from recipes import extend_context, sft
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.config import Yarn
from tests.e2e.runs import LOCAL, TINY, final_weights
from tests.model.tiny import relative

BASE = [word for word in TINY if not word.startswith("algo.")]
LONGER = [word for word in BASE if not word.startswith(("data.tasks", "engine.max_model_len", "model."))]
SUMS = "{{chain_sum: {{min_terms: 3, max_terms: {}, min_digits: 1, max_digits: 1, bare: true}}}}"
STAGES = [(96, 2, 7), (192, 4, 14)]


def steps(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == "sft"]


def extend(folder: Path) -> None:
    written = [f"{{length: {n}, factor: {f}, source: '', tasks: {SUMS.format(terms)}}}" for n, f, terms in STAGES]
    paths = [f"model.path={folder}/base/model", f"output_dir={folder}/longer"]
    extend_context.main([*LONGER, *LOCAL, *paths, f"stages=[{', '.join(written)}]"])


@pytest.mark.slow
def test_each_stage_starts_from_the_last_one_and_reaches_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft.main([*BASE, *LOCAL, "model.architecture.max_position_embeddings=64", f"output_dir={tmp_path}/base"])
    extend(tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("parity: engine and trainer agree") >= 3
    first, second = tmp_path / "longer" / "1-96", tmp_path / "longer" / "2-192"
    base = DeepseekV3Config.from_folder(tmp_path / "base" / "model")
    yarn = Yarn(factor=2, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0)
    expected = replace(base, rope_scaling=yarn, max_position_embeddings=128)
    assert DeepseekV3Config.from_folder(first / "model") == expected
    expected = replace(base, rope_scaling=replace(yarn, factor=4), max_position_embeddings=256)
    assert DeepseekV3Config.from_folder(second / "model") == expected
    # A stage begins at the bits that the one before ended with, and changes them.
    for before, stage in ((tmp_path / "base", first), (first, second)):
        start, end = DeepseekV3.from_checkpoint(stage / "initial").state_dict(), final_weights(before)
        assert all(torch.equal(start[name], end[name]) for name in ("model.norm.weight", "lm_head.weight"))
        assert not torch.equal(final_weights(stage)["lm_head.weight"], end["lm_head.weight"])
    # Both stages took 4 steps on about as many tokens: 16 samples of up to 96 tokens, 8 of up to 192.
    assert [[line["step"] for line in steps(stage)] for stage in (first, second)] == [[1, 2, 3, 4]] * 2
    longest = [max(line["tokens"] for line in steps(stage)) for stage in (first, second)]
    assert longest[0] > 16 * 30 and longest[1] > 8 * 64, "samples beyond the original 64 tokens were trained on"
    # What comes out is a checkpoint like any other, at the full new length.
    tokens_1T = torch.arange(200)[None] % 50
    with torch.no_grad():
        ours = DeepseekV3.from_checkpoint(second / "model")(tokens_1T)
        theirs = AutoModelForCausalLM.from_pretrained(second / "model", attn_implementation="eager")(tokens_1T).logits
    assert relative(ours, theirs) <= 1e-5

    # Started again, it finds both stages done and changes nothing.
    before = {file: file.read_bytes() for stage in (first, second) for file in stage.glob("model/*")}
    extend(tmp_path)
    assert capsys.readouterr().out.count("resuming after sft step 4") == 2
    assert {file: file.read_bytes() for file in before} == before
