"""A published, pretrained model through evaluation, SFT and GRPO (docs/real-model.md).

RLKIT_REAL_MODEL=outputs/smollm2 python -m pytest tests/e2e/test_real_model.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.model.files.end_tokens import end_tokens
from rlkit.watch import read_metrics
from tests.e2e.runs import finish

KEY = "RLKIT_REAL_MODEL"
FOLDER = Path(os.environ.get(KEY, ""))
QUESTION = "What is the capital of France?"
RUN = [
    "model=hf",
    f"model.path={FOLDER}",
    "trainer.lora={rank: 4, alpha: 8}",
    "data.tasks={chain_sum: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1, bare: true}}",
    "data.prompt_column='How much is {question}?'",
    "data.train_size=16",
    "data.eval_size=2",
    "engine.max_model_len=64",
    "evaluation.sampling.max_new_tokens=8",
    "algo.sampling.max_new_tokens=8",
    "algo.prompts_per_step=1",
    "algo.group_size=4",
    "algo.steps=1",
    "sft.steps=1",
    "sft.batch_size=4",
    "logging.tensorboard=false",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "config.json").is_file(),
        reason=f"{KEY} names no folder of SmolLM2-135M-Instruct; docs/real-model.md says how to make it",
    ),
]


def test_text_is_cut_and_ended_as_the_model_has_learnt_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.tokenize("a\n\n12  and 345") == ["a", "ĊĊ", "1", "2", "Ġ", "Ġand", "Ġ", "3", "4", "5"]
    [end] = end_tokens(FOLDER)
    assert tokenizer.convert_ids_to_tokens(end) == tokenizer.eos_token == "<|im_end|>"
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1"}], tokenize=False, add_generation_prompt=True
    )
    assert asked.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert asked.endswith("<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n")


def test_vllm_says_what_transformers_says(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "Paris"}) + "\n")
    words = [f"suite={tmp_path / 'asked.jsonl'}", "sampling.temperature=0", "sampling.max_new_tokens=16"]
    code = "import sys; from rlkit.cli.main import main; main(sys.argv[1:])"
    given = [str(FOLDER), *words, f"output_dir={tmp_path / 'eval'}"]
    done = subprocess.run([sys.executable, "-c", code, "eval", *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = (tmp_path / "eval" / "completions" / "asked.jsonl").read_text().splitlines()

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    conversation = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert json.loads(line)["tokens"] == said.tolist()
    assert json.loads(line)["completion"] == "The capital of France is Paris."


def test_sft_and_grpo_with_adapters(tmp_path: Path) -> None:
    """The parity gate has passed after the load and after every sync, or the run would have ended."""
    reward = tmp_path / "spread.py"
    reward.write_text("def spread(completion: str) -> float:\n    return (sum(completion.encode()) % 97) / 97\n")
    printed = finish("sft_then_grpo", *RUN, f"reward={reward}:spread", f"output_dir={tmp_path / 'run'}")
    assert printed.count("parity: engine and trainer agree within") == 2
    [step] = [line for line in read_metrics(tmp_path / "run") if line["stage"] == "grpo"]
    assert step["grad_norm"] > 0
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    adapted = PeftModel.from_pretrained(model, tmp_path / "run" / "model" / "adapter").merge_and_unload()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert all((exported[name] - tensor).abs().max() <= 1e-5 for name, tensor in adapted.state_dict().items())
