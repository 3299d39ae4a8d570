"""Multi-token prediction from SFT through GRPO, drafting for the sampler on the way; real parts in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import sft_then_grpo
from rlkit.engine.local import TorchEngine
from rlkit.model import DeepseekV3, drafting
from rlkit.types import Prompt, Sampling
from tests.e2e.runs import LOCAL, SPREAD_REWARD, TINY

MTP = ["model.architecture.num_nextn_predict_layers=1", "engine.speculative_tokens=1", "algo.mtp_weight=0.1"]
LEARNS = [word for word in TINY if not word.startswith(("sft.", "algo.steps", "data.train_size"))]
LEARNS += ["data.train_size=400", "sft.steps=60", "sft.batch_size=16", "algo.steps=2"]


def lines(folder: Path, stage: str) -> list[dict]:
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["stage"] == stage]


@pytest.mark.slow
def test_drafts_are_accepted_once_the_module_has_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(SPREAD_REWARD)
    run = tmp_path / "run"
    sft_then_grpo.main([*LEARNS, *LOCAL, *MTP, f"reward={plugin}:spread", f"output_dir={run}"])
    printed, demonstrated, sampled = capsys.readouterr().out, lines(run, "sft"), lines(run, "grpo")
    assert demonstrated[-1]["mtp_loss"] < demonstrated[0]["mtp_loss"] / 2
    assert (
        [line["parity"] <= 1e-4 for line in sampled] == [line["logprob_gap"] <= 1e-4 for line in sampled] == [True] * 2
    )
    print([round(line["drafts_accepted"], 3) for line in sampled], "of the drafts accepted in GRPO")
    assert all(line["drafts_accepted"] > 0.5 and line["mtp_loss"] > 0 for line in sampled)
    assert "  mtp " in printed and "  drafts " in printed

    model = DeepseekV3.from_checkpoint(run / "model")
    assert model.config.num_nextn_predict_layers == 1
    theirs = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    tokens = torch.randint(0, model.config.vocab_size, (1, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    asked = [{"role": "user", "content": "3 + 5 - 2"}]
    compare_passes(model, tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"], monkeypatch)


def compare_passes(model: DeepseekV3, asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of the main model for one completion after the prompt, with one and with three drafts each."""
    passes = 0

    def counted(*args: object) -> object:
        nonlocal passes
        passes += 1
        return check(*args)  # type: ignore[arg-type]

    check = drafting.check
    monkeypatch.setattr(drafting, "check", counted)
    assert model.config.eos_token_id is not None
    prompt = Prompt(id="q", tokens=tuple(asked), text="", meta={})
    sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=30, seed=0)
    plain = TorchEngine(model, model.config.eos_token_id, str)
    [expected] = plain.generate([prompt], 1, sampling)
    for extra in (1, 3):
        passes = 0
        engine = TorchEngine(model, model.config.eos_token_id, str, speculative_tokens=extra)
        [group] = engine.generate([prompt], 1, sampling)
        tokens = group.rollouts[0].tokens
        print(f"{len(tokens)} tokens in {passes} passes after the prompt, {extra} drafted for each")
        assert tokens == expected.rollouts[0].tokens
        assert passes < len(tokens) - 1
