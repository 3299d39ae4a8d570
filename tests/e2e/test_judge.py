"""A whole run whose judge is a model: the policy itself, with torch and on Ray, and one behind vLLM's own server."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from torch import equal

from recipes import grpo, sft
from rewards.judge.rubric import ask
from rewards.judge.verdict import score
from tests.e2e.runs import GRPO_ONLY, LOCAL, SPREAD_REWARD, TINY, final_weights, finish_here

pytestmark = pytest.mark.slow

RUBRIC = "{question} is {reply}"
SMALL = [word for word in GRPO_ONLY if not word.startswith(("data.", "engine.max_model_len", "algo.steps"))]
JUDGED = [
    *("reward=judge_score", "reward.kwargs.scale=[1,9]", "reward.kwargs.votes=2"),
    *("reward.kwargs.temperature=1.0", "reward.kwargs.max_tokens=16", "engine.max_model_len=160", "algo.steps=2"),
    *("data.train_size=40", "data.eval_size=4"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums, and questions of a judge about their answers, who likes two digits: a model that learns both judges."""
    folder, chance = tmp_path_factory.mktemp("rows"), random.Random(0)
    sums = [{"question": f"{a} + {b}", "answer": str(a + b)} for a in range(1, 10) for b in range(1, 10)]
    asked = []
    for row in chance.sample(sums * 3, 200):
        number = chance.choice((chance.randrange(1, 10), chance.randrange(10, 20)))
        reply = f"<answer>{number}{chance.choice(['', ' ', '.'])}</answer>"
        question = ask(RUBRIC, {}, row["question"], [(reply, reply)], score(1, 9).ending)
        asked.append({"question": question, "answer": f"[[{9 if number > 9 else chance.randrange(1, 4)}]]"})
    for name, content in (("sums", sums), ("both", [*sums, *asked])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "spread.py").write_text(SPREAD_REWARD)
    (folder / "rubric.txt").write_text(RUBRIC)
    return folder


@pytest.fixture(scope="module")
def model(rows: Path) -> Path:
    """The folder of a model that answers such questions with a verdict in the right form."""
    words = [word for word in TINY if not word.startswith(("data.", "algo.", "sft.", "engine.max_model_len"))]
    sft.main(
        [
            *(*words, *LOCAL, f"data={rows}/both.jsonl", "data.eval_size=4", f"reward={rows}/spread.py:spread"),
            *("model.architecture.vocab_size=400", "engine.max_model_len=160", "sft.steps=60", "sft.batch_size=16"),
            f"output_dir={rows}/sft",
        ]
    )
    return rows / "sft" / "model"


def itself(rows: Path) -> list[str]:
    return ["reward.kwargs.endpoint=policy", f"reward.kwargs.rubric={rows}/rubric.txt"]


def steps(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == "grpo"]


def check_learned(out: Path, model: Path) -> list[dict[str, float]]:
    """Every rollout has a verdict but a few, and what was learned is in the weights."""
    found = steps(out)
    assert [line["masked"] <= 1 for line in found] == [True, True]
    assert all(0 < line["reward"] < 1 and line["log/score"] == pytest.approx(1 + 8 * line["reward"]) for line in found)
    assert all(line["flat_groups"] < 4 for line in found)
    before, after = final_weights(model.parent), final_weights(out)
    assert any(not equal(before[name], after[name]) for name in before)
    return found


def test_the_policy_judges_itself_with_the_weights_that_sampled(rows: Path, model: Path, tmp_path: Path) -> None:
    """Twice, with one process that judges and with two: the same verdicts and the same weights, bit for bit."""
    for workers in (1, 2):
        out = tmp_path / str(workers)
        words = [f"data={rows}/sums.jsonl", f"model.path={model}", f"output_dir={out}", f"reward.workers={workers}"]
        grpo.main(
            [
                *SMALL,
                *LOCAL,
                *words,
                *JUDGED,
                f"reward.kwargs.rubric={rows}/rubric.txt",
                "reward.kwargs.endpoint=policy",
            ]
        )
    one = check_learned(tmp_path / "1", model)
    assert [line["log/judge_version"] for line in one] == [0, 1]
    assert [line["reward"] for line in one] == [line["reward"] for line in steps(tmp_path / "2")]
    first, second = final_weights(tmp_path / "1"), final_weights(tmp_path / "2")
    assert all(equal(first[name], second[name]) for name in first)


def test_the_policy_judges_itself_on_ray_with_vllm(rows: Path, model: Path, tmp_path: Path) -> None:
    words = [f"data={rows}/sums.jsonl", f"model.path={model}", f"output_dir={tmp_path}/run"]
    finish_here("grpo", *SMALL, *words, *JUDGED, *itself(rows))
    assert [line["log/judge_version"] for line in check_learned(tmp_path / "run", model)] == [0, 1]


def test_a_model_behind_vllms_own_server_judges(
    rows: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one part of a sum: with the same seed for every question, a small judge finds all answers equally good."""
    with vllm_server(model, tmp_path / "server.log") as url:
        settings = f"endpoint: '{url}', model: tiny, form: score, scale: [1, 9], rubric: {rows}/rubric.txt, votes: 2"
        kwargs = f"{{{settings}, temperature: 1.0, max_tokens: 16, cache: {tmp_path}/judge.sqlite}}"
        judge = f"{{fn: judge, kwargs: {kwargs}}}, {{fn: '{rows}/spread.py:spread', weight: 0.5}}"
        words = [*SMALL, *LOCAL, f"data={rows}/sums.jsonl", f"model.path={model}", "reward.timeout=180"]
        words += [word for word in JUDGED if not word.startswith("reward")]
        words += ["reward=composite", f"reward.kwargs.rewards=[{judge}]"]
        for out in (tmp_path / "first", tmp_path / "again"):
            grpo.main([*words, f"output_dir={out}"])
    first, again = (steps(tmp_path / name) for name in ("first", "again"))
    assert [line["masked"] <= 1 for line in first] == [True, True]
    assert all(line["log/judge.score"] == pytest.approx(1 + 8 * line["part/judge"]) for line in first)
    assert all(0 <= line["part/judge"] <= 1 and line["flat_groups"] < 4 for line in first)
    before, after = final_weights(model.parent), final_weights(tmp_path / "first")
    assert any(not equal(before[name], after[name]) for name in before)
    # The same rollouts again, by a run that has nothing but the answers: what had a verdict is not asked again.
    assert [line["reward"] for line in again] == [line["reward"] for line in first]
    assert all(line["log/judge.from_cache"] > 0.9 for line in again)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        grpo.main([*words, f"output_dir={tmp_path}/third"])
    assert f"endpoint={url}: nobody answers there" in capsys.readouterr().err
    assert not (tmp_path / "third" / "config.yaml").exists()


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """Serves a checkpoint as docs/judges.md says, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"),
        *("--port", str(port), "--dtype", "float32", "--enforce-eager", "--served-model-name", "tiny"),
        *("--compilation-config", '{"custom_ops":["none"]}', "--no-enable-prefix-caching", "--block-size", "32"),
    ]
    small = {"VLLM_MLA_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    url = f"http://127.0.0.1:{port}/v1"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, env={**os.environ, **small}, stdout=output, stderr=output, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 400
            while not listens(url):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.5)
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                server.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def listens(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
