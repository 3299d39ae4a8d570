"""One folder and several commands: what is judged again is what is stored, and none drops the suites of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkit.cli.main import main
from rlkit.types import Prompt
from tests.evaluation.scripted import LOCAL, Scripted, evaluate, model_folder, results, sums, tagged
from tests.hf_folders import make, save
from tests.watch.test_report import Page


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def first_half(prompt: Prompt, number: int) -> str:
    """Right in samples 0 and 1, wrong in 2 and 3."""
    return tagged(prompt.meta["answer"] if number < 2 else 100 + number)


def rescored(model: Path, *words: str) -> dict[str, Any]:
    return evaluate(model, *words, "--rescore", "number")["suites"]["own"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(["eval", *words])
    assert leaving.value.code == 2
    return capsys.readouterr().err


def test_a_rescore_with_a_model_takes_what_is_stored_and_refuses_another(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four samples of five problems are stored; the default is one sample of all six."""
    Scripted(first_half).started(monkeypatch)
    out, own = tmp_path / "out", f"suite={sums(tmp_path / 'own.jsonl')}"
    drawn = ["sampling.temperature=0.5", "sampling.max_new_tokens=8", "seed=3"]
    evaluate(model, own, "samples=4", "size=5", *drawn, f"output_dir={out}")
    for more in ([], drawn, ["engine=torch", "sampling.top_p=0.95", "reward.timeout=30"]):
        found = rescored(model, own, *more, f"output_dir={out}")
        assert (found["samples"], found["problems"], found["pass@1"]["value"], found["reward"]) == (4, 5, 0.5, "number")
    report = (out / "report.html").read_text()
    assert "samples: 4" in report and "seed: 3" in report
    found = rescored(model, own, "samples=2", "size=3", f"output_dir={out}")
    assert (found["samples"], found["problems"], found["pass@1"]["value"]) == (2, 3, 1.0)

    kept = (out / "results.json").read_bytes()
    words = [str(model), *LOCAL, own, f"output_dir={out}", "--rescore=number"]
    for word, said in (
        ("sampling.temperature=0.6", "other settings: sampling.temperature (sampling.temperature was 0.5, now 0.6)"),
        ("sampling.max_new_tokens=9", "sampling.max_new_tokens was 8, now 9"),
        ("seed=0", "seed was 3, now 0"),
        ("instruction=Think.", "instruction was '', now 'Think.'"),
    ):
        assert said in refused(capsys, *words, word)
    bare = [word for word in words if word not in LOCAL]
    assert "engine.kind was 'torch', now 'vllm'" in refused(capsys, *bare, "engine=vllm")
    other = save(make("llama", max_position_embeddings=65_536, hidden_size=128), tmp_path / "other")
    assert "other settings: model config.json, model model.safetensors" in refused(capsys, str(other), *words[1:])
    nowhere = [word.replace(str(out), str(tmp_path / "none")) for word in words]
    assert "holds no evaluation: there is no" in refused(capsys, *nowhere)
    assert (out / "results.json").read_bytes() == kept
    main(["eval", *bare])
    assert results(out)["suites"]["own"]["samples"] == 4, "where it was drawn need not be said"


def test_another_suite_in_the_folder_drops_none(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps the samples that were asked of it; a rescore of the folder judges both."""
    Scripted(first_half).started(monkeypatch)
    out, own, other = tmp_path / "out", sums(tmp_path / "own.jsonl"), sums(tmp_path / "other.jsonl", 3)
    first = evaluate(model, f"suite={own}", "samples=4", "size=5", f"output_dir={out}")["suites"]["own"]
    both = evaluate(model, f"suite={other}", "samples=2", f"output_dir={out}")["suites"]
    assert list(both) == ["own", "other"] and both["own"] == first
    assert (both["other"]["samples"], both["other"]["problems"]) == (2, 3)
    assert yaml.safe_load((out / "config.yaml").read_text())["suite"] == f"{own},{other}"
    page = Page((out / "report.html").read_text())
    assert page.all("summary")[:2] == ["own.jsonl", "other.jsonl"]
    main(["eval", "--rescore=number", f"output_dir={out}"])
    again = results(out)["suites"]
    assert [(one["reward"], one["samples"], one["problems"]) for one in again.values()] == [
        ("number", 4, 5), ("number", 2, 3),
    ]  # fmt: skip
    assert evaluate(model, f"suite={own}", "samples=4", "size=5", f"output_dir={out}")["suites"] == both


@pytest.mark.slow
def test_a_suite_that_is_not_wholly_drawn_and_judged_is_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Scripted(first_half).started(monkeypatch)
    out, own, other = tmp_path / "out", sums(tmp_path / "own.jsonl"), sums(tmp_path / "other.jsonl", 3)
    evaluate(model, f"suite={own}", "samples=4", "size=5", f"output_dir={out}")
    found = evaluate(model, f"suite={other}", "samples=2", "reward=format", f"output_dir={out}")
    assert list(found["suites"]) == ["other"]
    said = " ".join(capsys.readouterr().out.split())
    assert "suite own of" in said and "20 of its 20 completions are not drawn, or not judged by format" in said
    stored = out / "completions" / "own.jsonl"
    stored.write_text("".join(stored.read_text().splitlines(keepends=True)[1:]))
    assert list(evaluate(model, f"suite={other}", "samples=2", f"output_dir={out}")["suites"]) == ["other"]
    assert "1 of its 20 completions" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_suite_of_another_model_or_of_other_problems_is_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Scripted(first_half).started(monkeypatch)
    out, own, other = tmp_path / "out", sums(tmp_path / "own.jsonl"), sums(tmp_path / "other.jsonl", 3)
    evaluate(model, f"suite={own}", f"output_dir={out}")
    changed = save(make("llama", max_position_embeddings=65_536, hidden_size=128), tmp_path / "changed")
    found = evaluate(changed, f"suite={other}", f"output_dir={out}")
    assert list(found["suites"]) == ["other"] and "another model answered it" in capsys.readouterr().out
    assert yaml.safe_load((out / "config.yaml").read_text())["suite"] == str(other)
    sums(other, 4)
    assert list(evaluate(model, f"suite={own}", f"output_dir={out}")["suites"]) == ["own"]
    third = sums(tmp_path / "third.jsonl", 2)
    sums(own, 5)
    assert list(evaluate(model, f"suite={third}", f"output_dir={out}")["suites"]) == ["third"]
    assert "its file has other problems now" in " ".join(capsys.readouterr().out.split())
    settings = json.loads((out / "settings.json").read_text())
    del settings["asked"]["third"]
    (out / "settings.json").write_text(json.dumps(settings))
    sums(own)
    assert list(evaluate(model, f"suite={own}", f"output_dir={out}")["suites"]) == ["own"]
    assert "does not say what was asked" in " ".join(capsys.readouterr().out.split())
