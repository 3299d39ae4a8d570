"""GRPO with programs judged in the sandbox, on rows of MBPP as they are published."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlkit.cli import main as cli
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.loop import grpo_step
from rlkit.parity import Agreement
from rlkit.scoring.pool import build_reward
from rlkit.types import Group, Prompt, Rollout, Sampling
from rlkit.watch import read_evaluations, read_metrics
from tests.e2e.runs import GRPO_ONLY, LOCAL
from tests.test_loop import CFG, CountingTrainer, Log, Parts, replace

MBPP = Path(__file__).resolve().parents[3] / "shared" / "data" / "mbpp" / "mbpp.jsonl.gz"
SMALL = [word for word in GRPO_ONLY if not word.startswith(("data.", "engine.max_model_len"))]


@pytest.fixture(scope="module")
def rows() -> dict[int, dict]:
    """MBPP by task_id."""
    if not MBPP.exists():
        pytest.skip(f"no MBPP at {MBPP}")
    with gzip.open(MBPP, "rt", encoding="utf-8") as file:
        return {row["task_id"]: row for row in map(json.loads, file)}


@dataclass
class Scripted:
    """An engine whose completions are written beforehand, by the prompt's id."""

    completions: dict[str, list[str]]

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        for prompt in reversed(prompts):  # groups need not come in the order of the prompts
            texts = self.completions[prompt.id][:n]
            yield Group(prompt=prompt, rollouts=tuple(map(self.rollout, range(len(texts)), texts)))

    def rollout(self, i: int, text: str) -> Rollout:
        return Rollout(
            tokens=(5, 6 + i), logprobs=(-1.0, -1.0), text=text, finish_reason="stop", weight_version=0, seed=i
        )

    def drafts(self) -> tuple[int, int]:
        return (0, 0)

    def load(self, weights: object, version: int) -> None: ...


def test_right_programs_are_strengthened_and_wrong_ones_weakened(rows: dict[int, dict]) -> None:
    """The whole step but for sampling: sandboxed verdicts on real rows become advantages of the right sign."""
    tasks = {f"mbpp/{task}": rows[task] for task in (3, 12, 600)}
    prompts = [
        Prompt(id=id, tokens=(1, i), text=row["text"], meta=row) for i, (id, row) in enumerate(tasks.items(), start=2)
    ]
    completions = {
        id: [
            f"Here it is.\n```python\n{row['code']}\n```",
            f"<think>easy</think><answer>{row['code']}</answer>",
            f"```python\n{row['code']}\n```\nbetter:\n```python\n{row['code'].replace('return', 'return 7,')}\n```",
            "I would sort it first.",
        ]
        for id, row in tasks.items()
    }
    reward = load_config("grpo", GrpoRun, ["reward=code"]).reward
    log = Log()
    with build_reward(reward) as judge:
        parts = Parts(
            engine=Scripted(completions),  # type: ignore[arg-type]
            trainer=CountingTrainer(log),
            reward=judge,
            gate=lambda: Agreement(gap=0.0, mean=0.0, limit=""),
        )
        stats = grpo_step(1, prompts, parts, replace(CFG, prompts_per_step=3), max_tokens=64, seed=0).numbers
    reasons = {name: count for name, count in stats.items() if name.startswith("reason/")}
    assert reasons == {"reason/correct": 6, "reason/wrong": 3, "reason/no_code": 3}
    assert [stats[name] for name in ("reward", "accuracy", "masked", "flat_groups")] == [0.5, 0.5, 0, 0]
    assert 0 < stats["reward_p50_s"] <= stats["reward_p99_s"]
    # two of four right: +- 0.5 / sqrt(1/3); the token tells which rollout it is
    found = {
        (int(token), round(advantage, 4))
        for pack in log.batches[0].packs
        for token, advantage in zip(pack.tokens_T, pack.advantages_T.tolist(), strict=True)  # type: ignore[attr-defined]
        if advantage and token > 5
    }
    assert found == {(6, 0.866), (7, 0.866), (8, -0.866), (9, -0.866)}


@pytest.mark.slow
@pytest.mark.parametrize("column", ["text", "prompt"], ids=["mbpp", "sanitized"])  # with and without the tests
def test_the_recipe_runs_on_published_rows(
    rows: dict[int, dict], column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of random weights writes no code, and every one of its rollouts is told so."""
    chosen = [row for row in rows.values() if len(row["text"]) < 60][:12]
    file = tmp_path / "mbpp.jsonl"
    renamed = [{column if key == "text" else key: value for key, value in row.items()} for row in chosen]
    file.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    data = [
        "data=mbpp",
        f"data.source={file}",
        "data.eval_size=4",
        *([] if column == "text" else ["data.prompt_column=prompt"]),
    ]
    out = tmp_path / "run"
    sizes = ["engine.max_model_len=640", "algo.steps=1", f"output_dir={out}"]
    cli.main(["run", "grpo", *SMALL, *LOCAL, *data, "reward=code", *sizes])
    [line] = [line for line in read_metrics(out) if line["stage"] == "grpo"]
    assert {key: value for key, value in line.items() if key.startswith("reason/")} == {"reason/no_code": 16}
    assert (line["masked"], line["reward"]) == (0, 0.0)
    row = next(row for row in capsys.readouterr().out.splitlines() if row.strip().startswith("1/1 "))
    assert row.endswith("no_code 16")
    for evaluation in read_evaluations(out):
        assert {sample.reason for sample in evaluation.samples} == {"no_code"}
        starts = tuple(row["text"] for row in chosen)
        assert all(sample.question.startswith(starts) for sample in evaluation.samples)
        assert all(("assert" in sample.question) == (column == "text") for sample in evaluation.samples)
