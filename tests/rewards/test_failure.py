"""An exception in a user's reward is told with its file and line, and with the data that the function misread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import RewardError, Sample
from rewards.failure import MAX_TEXT

TEXT = [Sample("3 + 4", "7", meta={"answer": "7"}), Sample("1 + 1", "", meta={"answer": "2"})]
CHAT = [Sample([{"role": "user", "content": sample.prompt}], sample.completion, meta=sample.meta) for sample in TEXT]

# Every function fails in the line that ends in `# here`.
FAILS = """
import asyncio, json, re, functools
from rewards import Reward

def key(completion):
    return {"7": 1.0}[completion + "?"]  # here

def division(completions):
    return [1 / (len(text) - 1) for text in completions]  # here

def by_helper(completion):
    return helper(completion)

def helper(text):
    raise RuntimeError("no service")  # here

def in_a_library(completion):
    return json.loads("{" + completion)  # here

def in_a_callback(completion):
    return re.sub("7", lambda found: found.group(3), completion) == ""  # here

async def later(completion):
    await asyncio.sleep(0)
    raise KeyError(completion)  # here

async def later_batch(completions):
    await asyncio.sleep(0)
    return [float(text[3]) for text in completions]  # here

def yields(completions):
    for text in completions:
        yield float(text + "x")  # here

def leaves(completion):
    raise SystemExit(2)  # here

def exact(samples):
    assert len(samples) == 3, "three at a time"  # here

@functools.wraps(key)
def wrapped(**columns):
    return key(columns["completion"] + "!")

class Judge:
    def __init__(self, size=1):
        self.size = 1 / (size - 1)  # here, but only when it is made with 1

    def __call__(self, completion):
        return self.missing  # here

    def check_samples(self, samples):
        if samples[0].completion == "unchecked":
            raise OSError("no such file")  # here

    def close(self):
        open("/no/such/folder/file")  # here
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "fails.py"
    path.write_text(FAILS)
    return path


def told(name: str, samples: Sequence[Sample] = TEXT, **settings: Any) -> str:
    with pytest.raises(RewardError) as raised:
        rewards.load(name, **settings)(samples)
    return str(raised.value)


def is_marked(message: str, file: Path, function: str) -> bool:
    """Whether the message names a line that is marked, and that stands in or below this function."""
    found = re.search(rf" at {re.escape(str(file))}:(\d+)", message)
    assert found, message
    lines = file.read_text().splitlines()
    start = next(place for place, line in enumerate(lines) if re.search(rf"(def|class) {function}\b", line))
    return int(found[1]) - 1 > start and "# here" in lines[int(found[1]) - 1]


@pytest.mark.parametrize(
    ("fn", "what", "below"),
    [
        ("key", "KeyError: '7?'", "key"),
        ("division", "ZeroDivisionError: division by zero", "division"),
        ("by_helper", "RuntimeError: no service", "helper"),
        ("in_a_library", "JSONDecodeError: ", "in_a_library"),
        ("in_a_callback", "IndexError: no such group", "in_a_callback"),
        ("later", "KeyError: '7'", "later"),
        ("later_batch", "IndexError: string index out of range", "later_batch"),
        ("yields", "ValueError: could not convert", "yields"),
        ("leaves", "SystemExit: 2", "leaves"),
        ("exact", "AssertionError: three at a time", "exact"),
        ("wrapped", "KeyError: '7!?'", "key"),
    ],
)
def test_the_line_is_the_users_own(file: Path, fn: str, what: str, below: str) -> None:
    message = told(f"{file}:{fn}")
    assert f"raised {what}" in message and is_marked(message, file, below)


def test_so_it_is_for_everything_that_an_object_does(file: Path) -> None:
    with pytest.raises(RewardError) as raised:
        rewards.load(f"{file}:Judge")
    assert "cannot be made: ZeroDivisionError" in str(raised.value) and is_marked(str(raised.value), file, "Judge")
    judge = rewards.load(f"{file}:Judge", size=3)
    for call, what in (
        (lambda: judge(TEXT), "raised AttributeError: 'Judge' object has no attribute 'missing'"),
        (lambda: judge.check_samples([Sample("", "unchecked")]), "raised OSError: no such file"),
        (judge.close, "raised FileNotFoundError"),
    ):
        with pytest.raises(RewardError) as raised:
            call()
        assert what in str(raised.value) and is_marked(str(raised.value), file, "Judge")
    nested = rewards.load("composite", rewards=[{"fn": f"{file}:Judge", "kwargs": {"size": 3}}, "format"])
    with pytest.raises(RewardError, match=r"fails\.py:Judge' raised AttributeError") as raised:
        nested(TEXT)
    assert is_marked(str(raised.value), file, "Judge")


@pytest.mark.parametrize(
    ("source", "what", "line"),
    [
        ("import json\n\nlimit = undefined\n", "NameError: name 'undefined' is not defined", 3),
        ("def f(completion):\n    retrun 1.0\n", "SyntaxError: invalid syntax", 2),
        ("def f(completion):\n\treturn 1.0\n        return 2\n", "TabError|IndentationError", 3),
        ("\nimport no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'", 2),
        ("words = open('/no/such/words.txt').read()\n", "FileNotFoundError: .*words.txt", 1),
        ("import json\njson.loads('{')\n", "JSONDecodeError", 2),
        ("raise SystemExit('bad')\n", "SystemExit: bad", 1),
    ],
)
def test_a_file_that_does_not_load_is_told_with_its_line(tmp_path: Path, source: str, what: str, line: int) -> None:
    """A missing file that the user's own code opens was once told as the reward file that does not exist."""
    path = tmp_path / "own.py"
    path.write_text(source)
    with pytest.raises(RewardError, match=rf"own\.py cannot be imported: ({what}).* at {re.escape(str(path))}:{line}$"):
        rewards.load(f"{path}:f")


def test_a_long_text_of_an_exception_is_cut() -> None:
    def as_number(completion: str) -> float:
        return float(completion)

    with pytest.raises(RewardError) as raised:
        rewards.load(as_number)([Sample("", "x" * 200_000)])
    assert len(str(raised.value)) < MAX_TEXT + 1000


def test_an_exception_that_cannot_be_shown_is_still_told() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def mute(completion: str) -> float:
        raise Mute

    with pytest.raises(RewardError, match=r"raised Mute: \(its text cannot be had\) at .*test_failure\.py:\d+ \(on"):
        rewards.load(mute)(TEXT)


# Functions that take their data for something else


def content(completions, **columns):
    return [float(completion[0]["content"] == "7") for completion in completions]


def last_content(completions, **columns):
    return [float(completion[-1].get("content") == "7") for completion in completions]


def every_message(completions, **columns):
    return [sum(message["content"] == "7" for message in completion) for completion in completions]


def first_as_table(completions, **columns):
    return [float(dict(completion[0])["content"] == "7") for completion in completions]


def asked(prompts, completions, **columns):
    return [float(prompt[-1]["content"] == "3 + 4") for prompt in prompts]


def attribute(completions, **columns):
    return [float(completion[0].content == "7") for completion in completions]


def plain(completions, **columns):
    return [float(completion.strip() == "7") for completion in completions]


def pattern(completions, **columns):
    return [float(bool(re.fullmatch("7", completion))) for completion in completions]


@pytest.mark.parametrize("fn", [content, last_content, every_message, first_as_table, asked, attribute])
def test_trls_conversational_functions_say_how_they_are_set(fn: Any) -> None:
    message = told(fn)
    assert "completions is a list of 2, the first text '7'" in message
    assert "if it reads chat messages, set conversational=true (in a run reward.kwargs.conversational=true)" in message
    if fn is not attribute:
        judge = rewards.load(fn, conversational=True)
        assert [reward.value for reward in judge(TEXT)] == [reward.value for reward in rewards.load(fn)(CHAT)] == [1, 0]


def test_so_do_those_that_name_only_some_of_the_arguments() -> None:
    for fn, words in (
        (
            lambda prompts: [float(prompt[-1]["content"] == "3 + 4") for prompt in prompts],
            "given: prompts is a list of 2",
        ),
        (
            lambda prompts, **rest: [float(c[0]["content"] == "7") for c in rest["completions"]],
            "given: prompts is a list",
        ),
    ):
        message = told(fn)
        assert "if it reads chat messages, set conversational=true" in message and words in message
    with pytest.raises(RewardError, match=r"completions is a list of 2, the first text '7', .*set conversational=true"):
        rewards.from_trl(lambda **rest: [c[0]["content"] for c in rest["completions"]])(TEXT)
    judge = rewards.from_trl(lambda **rest: [float(c[0]["content"]) for c in rest["completions"]], conversational=True)
    assert [reward.value for reward in judge(TEXT[:1])] == [7.0]


def test_an_empty_completion_alone_triggers_it_too() -> None:
    assert "set conversational=true" in told(content, [TEXT[1]])


@pytest.mark.parametrize("fn", [plain, pattern])
def test_functions_of_texts_that_get_messages_say_so(fn: Any) -> None:
    assert "conversational=true is set, so each completion is a list of one message" in told(fn, conversational=True)
    assert "the prompts are chat messages, so each completion is a list of one" in told(fn, CHAT)
    assert [reward.value for reward in rewards.load(fn)(TEXT)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (
            lambda solution_str, ground_truth: ground_truth["target"],
            ["ground_truth is text '7'", "ground_truth is the row's reward_model.ground_truth, else"],
        ),
        (
            lambda data_source, solution_str, ground_truth, extra_info: extra_info["index"],
            ["extra_info is a table of nothing", "extra_info is the row's column of that name"],
        ),
        (lambda solution_str, ground_truth: solution_str[0]["content"], ["solution_str is text '7'"]),
        (
            lambda queries, prompts, labels: [label["answer"] for label in labels],
            ["labels is a list of 2, the first text '7'", "labels are the rows' label, else their answer"],
        ),
        (
            lambda queries, labels: [query[1]["content"] for query in queries],
            ["queries is a list of 2, the first text '3 + 47'", "the prompt and the completion in one text"],
        ),
        (lambda completion, answer: completion[0]["content"], ["completion is text '7'", "answer is text '7'"]),
        (lambda completion, answer: answer["target"], ["answer is text '7'"]),
        (lambda completion, gold: gold.strip(), ["gold is a list of 1, the first int 7"]),
        (lambda samples: [sample["completion"] for sample in samples], ["samples is a list of 2, the first Sample"]),
        (lambda completions, answer: [completions.strip()], ["completions is a list of 2, the first text '7'"]),
    ],
)
def test_other_functions_say_what_they_were_given(fn: Any, words: list[str]) -> None:
    rows = [Sample(s.prompt, s.completion, meta={**s.meta, "gold": [7], "data_source": "x"}) for s in TEXT]
    message = told(fn, rows)
    assert "it was given: " in message and all(word in message for word in words), message


def test_an_error_that_has_nothing_to_do_with_the_data_does_not_list_them() -> None:
    def service(completions: list[str]) -> list[float]:
        raise ConnectionError("refused")

    assert "given" not in told(service) and "conversational" not in told(service)


def test_verls_batches_are_refused_in_words() -> None:
    def compute(data_sources, solution_strs, ground_truths, extra_infos=None):
        return [1.0]

    with pytest.raises(
        RewardError, match=r"takes lists, as for verl's batched reward manager; write it for one sample"
    ):
        rewards.load(compute)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda: rewards.Reward(1.0, parts=[1.0]),
            r"returned parts='\[1\.0\]' for sample 0 .*a table of names and num",
        ),  # type: ignore[arg-type]
        (lambda: rewards.Reward(None, logs="text"), r"returned logs='text' for sample 0"),  # type: ignore[arg-type]
        (lambda: rewards.Reward(Broken()), "returned '<.*Broken object at .*' for sample 0"),  # type: ignore[arg-type]
        (lambda: rewards.Reward(1.0, parts={"a": Broken()}), "for sample 0 .*, part 'a'"),  # type: ignore[arg-type]
    ],
)
def test_a_reward_that_is_none_names_the_sample(reward: Any, message: str) -> None:
    assert re.search(message, told(lambda completion: reward()))


class Broken:
    def __float__(self) -> float:
        raise RuntimeError("a tensor with 2 elements is not one number")


def test_a_reason_is_text() -> None:
    given = [rewards.Reward(1.0, reason) for reason in ("so", None, 7)]  # type: ignore[arg-type]
    found = rewards.load(lambda completions: given)([*TEXT, TEXT[0]])
    assert [reward.reason for reward in found] == ["so", "", "7"]
