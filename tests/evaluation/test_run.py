"""Evaluations as a user runs them: the same twice, gone on after a kill, judged again, and refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlkit import build
from rlkit.cli.main import main
from rlkit.types import Prompt
from tests.evaluation.scripted import LOCAL, Scripted, evaluate, lines, model_folder, results, sums, tagged
from tests.hf_folders import make, save
from tests.watch.test_report import Page


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def right_half(prompt: Prompt, number: int) -> str:
    """Right in samples 0 and 1, wrong in 2 and 3."""
    return tagged(prompt.meta["answer"] if number < 2 else 100 + number)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(["eval", *words])
    assert leaving.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deepseek", "llama"])
def test_two_runs_with_one_seed_agree_exactly_and_no_trainer_is_started(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own model and one of transformers, as save_pretrained writes them, with the engine in this process."""
    monkeypatch.setattr(build, "build_trainer", lambda *_, **__: pytest.fail("a trainer is started"))
    folder = save(make(kind), tmp_path / "model")
    words = [f"suite={sums(tmp_path / 'own.jsonl', 3)}", "samples=3", "sampling.max_new_tokens=8"]
    first = evaluate(folder, *words, f"output_dir={tmp_path / 'a'}")
    evaluate(folder, *words, f"output_dir={tmp_path / 'b'}")
    for name in ("results.json", "completions/own.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = evaluate(folder, *words, "seed=1", f"output_dir={tmp_path / 'c'}")
    texts = [[line["tokens"] for line in lines(tmp_path / run / "completions" / "own.jsonl")] for run in "ac"]
    assert texts[0] != texts[1]
    assert first["suites"]["own"]["settings"]["model.kind"] == {"deepseek": "deepseek", "llama": "hf"}[kind]
    assert len({line["seed"] for line in lines(tmp_path / "a" / "completions" / "own.jsonl")}) == 9
    assert other["suites"]["own"]["samples"] == 3 and other["versions"][0]["torch"]


@pytest.mark.slow
def test_results_and_report_say_what_was_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first two of four samples are right; the wrong ones differ, so that the right ones outvote them."""
    Scripted(right_half).started(monkeypatch)
    out = tmp_path / "out"
    suite = f"suite=gsm8k,{sums(tmp_path / 'own.jsonl')}"
    found = evaluate(model, suite, "size=5", "samples=4", "sampling.max_new_tokens=64", f"output_dir={out}")["suites"]
    assert list(found) == ["gsm8k", "own"]
    for one in found.values():
        values = {name: one[name]["value"] for name in ("pass@1", "pass@2", "pass@4", "majority@4")}
        assert values == pytest.approx({"pass@1": 1 / 2, "pass@2": 5 / 6, "pass@4": 1, "majority@4": 1})
        assert one["outcomes"] == {f"{one['suite']}/{i}": [True, True, False, False] for i in range(5)}
        assert (one["problems"], one["samples"], one["missing"], one["no_verdict"]) == (5, 4, 0, 0)
        assert one["reasons"] == {"correct": 10, "wrong": 10}
        assert one["settings"]["sampling.temperature"] == 0.6 and one["settings"]["sampling.max_new_tokens"] == 64
    stored = lines(out / "completions" / "own.jsonl")
    assert len(stored) == 20
    assert {line["prompt"] for line in stored} == {f"<bos><|user|>{a} + {a} =<|assistant|>" for a in range(1, 6)}
    screen = capsys.readouterr().out
    assert re.search(r"GSM8K +5 +4 +50\.0 % \[.*\] +83\.3 % .* 100\.0 %", screen), screen
    assert f"report: {out / 'report.html'}" in screen
    page = Page((out / "report.html").read_text())
    assert page.all("h1") == ["rlkit eval: " + model.name]
    cells = page.all("td")
    assert {"GSM8K", "own.jsonl", "math", "math {'extraction': 'lenient'}", "sampling.temperature"} <= set(cells)
    assert len(page.all("svg")) == 2, "pass@1 with intervals, pass@k over k"
    assert sum("sample 1: right" in text for text in page.all("header")) == 10
    assert "Wilson" in " ".join(page.all("p"))
    assert not {name for tag, names in page.tags for name in names if name in ("src", "onerror")}


def test_hostile_completions_stay_text_in_the_report(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)></pre></style><!--\ud800\x1b[2J"
    Scripted(lambda prompt, number: evil).started(monkeypatch)
    evaluate(model, f"suite={sums(tmp_path / 'own.jsonl', 2)}", f"output_dir={tmp_path / 'out'}")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert not {"script", "img"} & {tag for tag, _ in page.tags} and page.comments == []
    assert lines(tmp_path / "out" / "completions" / "own.jsonl")[0]["completion"] == evil


@pytest.mark.slow
def test_what_is_there_is_not_drawn_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples, more problems, a torn line, a lost one: only what is missing is drawn, and it is the same."""
    out, own = tmp_path / "out", sums(tmp_path / "own.jsonl")
    words = [f"suite={own}", f"output_dir={out}"]
    assert len(start(monkeypatch, model, *words, "size=2", "samples=2").asked) == 4
    assert sorted(start(monkeypatch, model, *words, "size=2", "samples=3").asked) == ["own/0#2", "own/1#2"]
    assert sorted(start(monkeypatch, model, *words, "size=3", "samples=3").asked) == [f"own/2#{i}" for i in range(3)]
    assert start(monkeypatch, model, *words, "size=3", "samples=3").asked == []
    whole = results(out)
    file = out / "completions" / "own.jsonl"
    kept = file.read_text().splitlines(keepends=True)
    file.write_text("".join(kept[1:-1]) + kept[-1][:40])  # a kill cut the last line short, and one is gone
    lost = [json.loads(line) for line in (kept[0], kept[-1])]
    asked = start(monkeypatch, model, *words, "size=3", "samples=3").asked
    assert sorted(asked) == sorted(f"{line['row']}#{line['sample']}" for line in lost)
    again = {(line["row"], line["sample"]): line for line in lines(file)}
    assert all(again[line["row"], line["sample"]]["seed"] == line["seed"] for line in lost)
    assert results(out) == whole
    assert len(json.loads((out / "settings.json").read_text())["lives"]) == 5
    file.write_text(kept[0] + "{no json}\n" + kept[1])
    with pytest.raises(SystemExit):
        evaluate(model, *words)


def start(monkeypatch: pytest.MonkeyPatch, model: Path, *words: str) -> Scripted:
    """Evaluates with a scripted engine, and returns it."""
    with monkeypatch.context() as patch:
        engine = Scripted(right_half).started(patch)
        evaluate(model, *words)
    return engine


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine dies in the middle of the second suite; what it gave is kept, and the end is that of a whole run."""
    own, other = sums(tmp_path / "own.jsonl"), sums(tmp_path / "other.jsonl", 4)
    words = [f"suite={own},{other}", "samples=2"]

    def dies(prompt: Prompt, number: int) -> str:
        if prompt.id == "other/1#1":
            raise MemoryError("the engine is gone")
        return right_half(prompt, number)

    Scripted(dies).started(monkeypatch)
    with pytest.raises(MemoryError):
        evaluate(model, *words, f"output_dir={tmp_path / 'a'}")
    drawn = len(lines(tmp_path / "a" / "completions" / "other.jsonl"))
    assert drawn == 4  # #1 of problem 3, #0 of 3, #1 of 2, #0 of 2: they come from the end
    engine = start(monkeypatch, model, *words, f"output_dir={tmp_path / 'a'}")
    assert len(engine.asked) == 8 - drawn
    start(monkeypatch, model, *words, f"output_dir={tmp_path / 'b'}")
    assert results(tmp_path / "a") == results(tmp_path / "b")


FLAKY = """
from pathlib import Path
from rewards import Reward

def judge(completions, answer, **columns):
    broken = Path({flag!r}).exists()
    pairs = zip(completions, answer)
    return [Reward(None, "infra: no sandbox") if broken and a == "4" else float(a in c) for c, a in pairs]
"""


def test_only_verdicts_that_a_machine_owes_are_asked_for_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verdict of None by the sandbox is made up for without sampling; until then it counts as not solved."""
    flag, code = tmp_path / "broken", tmp_path / "flaky.py"
    flag.write_text("")
    code.write_text(FLAKY.format(flag=str(flag)))
    out = tmp_path / "out"
    words = [f"suite={sums(tmp_path / 'own.jsonl', 4)}", "samples=2", f"reward={code}:judge", f"output_dir={out}"]
    Scripted(lambda prompt, number: tagged(prompt.meta["answer"])).started(monkeypatch)
    with pytest.raises(SystemExit) as leaving:
        evaluate(model, *words)
    assert leaving.value.code == 1
    said = capsys.readouterr()
    assert "own.jsonl: 2 completions have no verdict (infra)" in said.err and "sandbox doctor" in said.err
    assert "2 of 8 completions have no verdict and count as not solved" in said.out
    first = results(out)["suites"]["own"]
    assert (first["pass@1"]["value"], first["unjudged"], first["outcomes"]["own/1"]) == (0.75, 2, [None, None])
    flag.unlink()
    engine = Scripted(right_half).started(monkeypatch)
    again = evaluate(model, *words)["suites"]["own"]
    assert engine.asked == [] and (again["pass@1"]["value"], again["unjudged"]) == (1.0, 0)
    assert len(lines(out / "verdicts" / "own.jsonl")) == 8 + 2


def test_a_changed_file_of_the_reward_judges_all_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward's file stays, and what it imports from beside it changes."""
    (tmp_path / "worth_of_run.py").write_text("GOOD = 1.0\n")
    (tmp_path / "own_of_run.py").write_text("from worth_of_run import GOOD\ndef f(completion, answer): return GOOD\n")
    words = [f"suite={sums(tmp_path / 'own.jsonl', 2)}", f"reward={tmp_path / 'own_of_run.py'}:f"]
    Scripted(right_half).started(monkeypatch)
    found = []
    for text in ("GOOD = 1.0\n", "GOOD = 0.00\n"):  # of another length, or Python may take its compiled form
        (tmp_path / "worth_of_run.py").write_text(text)
        own = evaluate(model, *words, f"output_dir={tmp_path / 'out'}")["suites"]["own"]
        found.append((own["pass@1"]["value"], own["reward_mark"]))
    assert [value for value, _ in found] == [1.0, 0.0] and found[0][1] != found[1][1]


@pytest.mark.slow
def test_rescore_judges_what_is_stored_by_another_reward(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`math` takes \\boxed, `number` does not; neither the model nor an engine is there the second time."""
    out, own = tmp_path / "out", sums(tmp_path / "own.jsonl")
    words = [f"suite={own}", "samples=2", f"output_dir={out}"]
    Scripted(lambda p, i: tagged(p.meta["answer"]) if i else f"\\boxed{{{p.meta['answer']}}}").started(monkeypatch)
    before = evaluate(model, *words)
    assert before["suites"]["own"]["pass@1"]["value"] == 1
    engine = Scripted(right_half).started(monkeypatch)
    for asked in ([str(model), *LOCAL, *words, "--rescore", "number"], ["--rescore=number", f"output_dir={out}"]):
        main(["eval", *asked])
        found = results(out)["suites"]["own"]
        assert (found["reward"], found["pass@1"]["value"], found["reasons"]) == (
            "number",
            0.5,
            {"no_answer": 6, "correct": 6},
        )
        assert (out / "report.html").exists()
    assert engine.asked == []
    assert len(lines(out / "verdicts" / "own.jsonl")) == 24, "the second time there was nothing left to judge"
    assert evaluate(model, *words) == before, "the suite's own verdicts are still there"
    sums(own, 5)
    assert "for other problems than its file has now" in refused(capsys, "--rescore", "number", f"output_dir={out}")
    sums(own)
    assert "holds no evaluation" in refused(capsys, "--rescore", "number", f"output_dir={tmp_path / 'none'}")
    assert "no reward is called" in refused(capsys, "--rescore", "numbre", f"output_dir={out}")


@pytest.mark.slow
def test_changed_settings_in_the_same_folder_are_refused_by_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, own = tmp_path / "out", sums(tmp_path / "own.jsonl")
    words = [str(model), *LOCAL, f"suite={own}", f"output_dir={out}"]
    start(monkeypatch, model, *words[3:])
    before = (out / "results.json").read_bytes()
    said = refused(capsys, *words, "sampling.temperature=0.7")
    assert "other settings: sampling.temperature (sampling.temperature was 0.6, now 0.7)" in said
    assert "instruction was '', now 'Think.'" in refused(capsys, *words, "instruction=Think.")
    assert "seed was 0, now 1" in refused(capsys, *words, "seed=1")
    sums(own, 7)
    assert "problems was" in refused(capsys, *words)
    sums(own)
    other = save(make("llama", max_position_embeddings=65_536, hidden_size=128), tmp_path / "other")
    said = refused(capsys, str(other), *words[1:])
    assert "other settings: model config.json, model model.safetensors" in said
    (out / "settings.json").unlink()
    assert "does not say which" in refused(capsys, *words, "seed=1")
    assert (out / "results.json").read_bytes() == before


@pytest.mark.slow
def test_what_does_not_fit_the_context_is_cut_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The suite's own length is cut to what the context has left, one that was asked for is refused."""
    model = save(make("llama", max_position_embeddings=64), tmp_path / "model")
    words = [f"suite={sums(tmp_path / 'own.jsonl')}", f"output_dir={tmp_path / 'out'}"]
    Scripted(right_half).started(monkeypatch)
    found = evaluate(model, *words)["suites"]["own"]
    assert found["settings"]["sampling.max_new_tokens"] == 64 - 8  # <bos> <|user|> 6 " +" " " 6 " =" <|assistant|>
    assert "has room for 56" in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert saved["engine"]["max_model_len"] == 64
    said = refused(capsys, str(model), *LOCAL, *words, "sampling.max_new_tokens=57")
    assert "the prompt of own/0 has 8 tokens" in said and "set sampling.max_new_tokens=56, or less" in said
    said = refused(capsys, str(model), *LOCAL, "suite=gsm8k", f"output_dir={tmp_path / 'b'}")
    assert "use a model with a longer context" in said and not (tmp_path / "b").exists()


def test_the_words_of_the_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"suite={sums(tmp_path / 'own.jsonl')}"
    main(["eval", "--help"])
    printed = capsys.readouterr().out
    assert "usage: rlkit eval MODEL" in printed and "aime24, aime25, gsm8k" in printed
    out = f"output_dir={tmp_path / 'out'}"
    main(["eval", str(model), *LOCAL, own, out, "dry_run=true", "samples=3"])
    printed = capsys.readouterr().out
    assert "own.jsonl: 6 problems x 3 samples, at most 1,024 tokens each\nnothing was started" in printed
    main(["eval", str(model), own, "--cfg", "job"])
    assert "sampling:\n  temperature: null" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert "needs the folder of a model" in refused(capsys, own)
    assert "takes one MODEL" in refused(capsys, str(model), str(tmp_path), own)
    assert "suite has no value; set suite=..." in refused(capsys, str(model))
    assert "samplse is not a key of recipe eval (did you mean 'samples'?)" in refused(capsys, str(model), "samplse=4")
    assert "no such folder" in refused(capsys, str(tmp_path / "nowhere"), own)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    assert f"its model is {tmp_path / 'run' / 'model'}" in refused(capsys, str(tmp_path / "run"), own)
    assert "--rescore needs a reward" in refused(capsys, str(model), own, "--rescore")
    assert "takes output_dir=DIR alone" in refused(capsys, "--rescore", "number", "seed=1")


@pytest.mark.slow
def test_on_ray_with_vllm(tmp_path: Path) -> None:
    """The recipe's default place: an engine of vLLM on Ray, and no trainer; a second start draws nothing."""
    folder = save(make("deepseek"), tmp_path / "model")
    own, out = sums(tmp_path / "own.jsonl", 4), tmp_path / "out"
    words = [f"suite={own}", "samples=2", "sampling.max_new_tokens=8", "engine.memory=0.1", "engine.threads=1"]
    code = "import sys; from rlkit.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "eval", str(folder), *words, f"output_dir={out}"]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    found = results(out)["suites"]["own"]
    assert (found["problems"], found["samples"], found["settings"]["engine.kind"]) == (4, 2, "vllm")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "0 to draw (8 are there)" in again.stdout
    assert len(lines(out / "completions" / "own.jsonl")) == 8
    assert results(out)["suites"]["own"] == found
