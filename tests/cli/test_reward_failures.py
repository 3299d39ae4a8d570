"""`rlkit reward` on rewards that fail, or that have no verdict: what it says, and with which exit code it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_reward import reward, write

OWN = """
import json
from rewards import Reward

calls = 0

def some(completion, answer):
    global calls
    calls += 1
    right = completion.endswith(f"</think><answer>{answer}</answer>") and completion.count("<answer>") == 1
    return None if calls % 3 == 0 else float(right)

def none(completion):
    return None

def service(completion):
    return Reward(None, "offline: the service does not answer")

def in_batches(completions, **columns):
    return [None for _ in completions]

def chat(completions, **columns):
    return [float(completion[0]["content"].startswith("<think>")) for completion in completions]

def fails(completion):
    return json.loads(completion)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path}/own.py"


@pytest.mark.parametrize(
    ("name", "settings", "counts"),
    [
        ("{own}:none", [], "no reason 3"),
        ("{own}:service", [], "offline 3"),
        ("{own}:in_batches", [], "no reason 3"),
        ("number", [], "gold_unparsable 3"),
        ("length", ["max_completion_len=9", "soft_punish_cache=3"], "no_token_ids 3"),
        ("cosine", ["fn=format", "max_len=9"], "no_token_ids 3"),
        ("composite", ["rewards=[format, number]"], "gold_unparsable 3"),
        ("composite", ["rewards=[{{fn: '{own}:service'}}, format]"], "offline 3"),
    ],
)
def test_score_without_a_single_verdict_fails(
    name: str, settings: list[str], counts: str, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended with exit code 0, under a table of dashes."""
    rows = [{"prompt": "3 + 4", "completion": f"<answer>{n}</answer>", "answer": "seven"} for n in range(3)]
    path = write(tmp_path / "rows.jsonl", rows)
    words = [word.format(own=own) for word in (name, *settings)]
    assert reward("score", path, *words, "--output", str(tmp_path / "out.jsonl")) == 1
    assert f"no verdict on any of the 3 rows ({counts}): it is the reward that failed" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3, "what was said is written all the same"


def test_one_verdict_is_enough(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"completion": "<answer>7</answer>", "answer": answer} for answer in ("seven", "7", "eight")]
    assert reward("score", write(tmp_path / "rows.jsonl", rows), "number") == 0
    assert "no verdict on any" not in capsys.readouterr().out
    assert reward("verify-dataset", str(tmp_path / "rows.jsonl"), f"{own}:none") == 1
    printed = capsys.readouterr().out
    assert "no verdict on any of the 3 rows (no reason 3)" in printed and "0 of 3 golds earn 1 or more" in printed


def test_test_passes_a_judge_that_has_no_verdict_now_and_then(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reward("test", f"{own}:some") == 0
    printed = capsys.readouterr().out
    assert "comparisons were left out: one of the two had no verdict" in printed
    assert printed.endswith("own.py:some: no fault found\n")


def test_exceptions_are_shown_with_file_and_line(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "?", "completion": "{", "answer": "7"}] * 2)
    line = 1 + OWN.splitlines().index("    return json.loads(completion)")
    assert reward("score", rows, f"{own}:fails") == 2
    assert "raised JSONDecodeError: Expecting property name" in (printed := capsys.readouterr().err)
    assert f" at {own}:{line} (on sample 0 (prompt '?');" in printed
    assert reward("test", f"{own}:fails") == 1
    assert f" at {own}:{line} (on sample 0 (prompt '3 + 4');" in capsys.readouterr().out


def test_a_conversational_function_of_trl_says_how_it_is_set(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hint, line = (
        "if it reads chat messages, set conversational=true",
        1
        + OWN.splitlines().index(
            '    return [float(completion[0]["content"].startswith("<think>")) for completion in completions]'
        ),
    )
    text = {"prompt": "3 + 4", "completion": "<think></think>7", "answer": "7"}
    chat = {**text, "prompt": [{"role": "user", "content": "3 + 4"}]}
    for name, rows, code in (("text", [text, text], 2), ("chat", [chat, chat], 0)):
        path = write(tmp_path / f"{name}.jsonl", rows)
        assert reward("score", path, f"{own}:chat") == code
        printed = capsys.readouterr()
        assert (hint in printed.err and f" at {own}:{line} (on a batch of 2" in printed.err) == (name == "text")
        assert reward("score", path, f"{own}:chat", "conversational=true") == 0
    assert reward("test", f"{own}:chat") == 1
    assert hint in capsys.readouterr().out
    reward("test", f"{own}:chat", "conversational=true")
    assert "contract         pass" in capsys.readouterr().out
