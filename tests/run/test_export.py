"""What a run makes of the files beside the weights of its base, for our class and for those of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from recipes import sft
from rlkit.config import SftRun
from rlkit.config.compose import load_config
from rlkit.data.tokenizer import load_tokenizer
from rlkit.model.files.end_tokens import end_tokens
from rlkit.run.prepare import prepare
from tests.hf_folders import make, save
from tests.run.test_errors import LOCAL

pytestmark = pytest.mark.slow

TEXT = "12 + 34 - 5\nHow are you"
SHORT = ["data.train_size=20", "data.eval_size=4", "engine.max_model_len=64", "evaluation.sampling.max_new_tokens=2"]
RUN = [*LOCAL, *SHORT]


@pytest.mark.parametrize("kind", ["deepseek", "hf"])
def test_tokenizer_and_end_tokens_go_from_the_base_into_the_export(kind: str, tmp_path: Path) -> None:
    """The base is that of R1-Distill-Llama in small: a byte-level tokenizer.json under the name of another class."""
    base, out = save(make("deepseek"), tmp_path / "base"), tmp_path / "run"
    GenerationConfig(eos_token_id=[1, 7]).save_pretrained(base)
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    shape = "null" if kind == "hf" else "{}"
    given = [*RUN, f"model.kind={kind}", f"model.architecture={shape}", f"model.path={base}"]
    sft.main([*given, "sft.steps=0", f"output_dir={out}"])
    for file in base.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            assert (out / "model" / file.name).read_bytes() == file.read_bytes(), file.name
    assert end_tokens(out / "model") == {1, 7}
    exported = load_tokenizer(out / "model")
    assert exported.decode(exported.encode(TEXT, add_special_tokens=False)) == TEXT
    task = prepare(load_config("sft", SftRun, [*given, f"model.path={out / 'model'}"]))
    assert all(prompt.meta["question"] in exported.decode(prompt.tokens) for prompt in task.prompts)


def test_the_export_of_a_new_model_has_the_tokenizer_of_its_start(tmp_path: Path) -> None:
    sft.main([*RUN, "sft.steps=0", f"output_dir={tmp_path}"])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "initial" / name).read_bytes()
    assert not (tmp_path / "model" / "generation_config.json").exists()


def test_repeated_rows_are_counted_in_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"question": f"{i % 6} + 1", "answer": i % 6 + 1} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = [f"data.source={tmp_path}/rows.jsonl", "data.solution_column=", "data.train_size=-1", "data.eval_size=2"]
    sft.main([*RUN, *source, "dry_run=true"])
    printed = capsys.readouterr().out
    assert "4 to train on, 2 held out" in printed and "3 rows with a question of another row are left out" in printed
