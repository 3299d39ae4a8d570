"""What the judge is asked: the user's rubric with the completion, or two of them, in its places.

What is not covered: several messages, images, tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.adapters import text_of
from rewards.base import RewardError, Sample, thought_is_open
from rewards.extract import thought_end

ONE, TWO = ("",), ("_a", "_b")
"""The endings of the placeholders for a single completion, and for those of a pair."""
_PLACE = re.compile(r"\{(\w+)\}")
_FILES = (".txt", ".md")


def read_rubric(text: str) -> str:
    """Returns the rubric: the text itself, or what stands in the .txt or .md file that it names.

    Raises RewardError for a file that cannot be read, and for no text at all.
    """
    if text.endswith(_FILES) and "\n" not in text:
        try:
            text = Path(text).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:  # ~nobody has no home
            raise RewardError(f"judge: rubric={text!r} cannot be read ({error}); correct the path") from error
    if not text.strip():
        raise RewardError("judge: rubric is empty; say what a good answer is, with {question} and {reply} in place")
    return text


def check_places(rubric: str, sides: Sequence[str]) -> None:
    """Raises RewardError if the rubric has no place for a completion that it is to judge, or one for another form."""
    found = set(_PLACE.findall(rubric))
    for side in sides:
        if not found & {f"reply{side}", f"completion{side}"}:
            raise RewardError(
                f"judge: the rubric has no {{reply{side}}} (the text behind the thought) and no {{completion{side}}} "
                f"(all of it), so the judge would not see what it judges; put one of them into reward.kwargs.rubric, "
                f"or change reward.kwargs.form. It begins {rubric[:60]!r}"
            )
    others = {f"{name}{side}" for name in ("reply", "completion") for side in (*ONE, *TWO) if side not in sides}
    if wrong := sorted(found & others):
        raise RewardError(
            f"judge: the rubric has {{{wrong[0]}}}, which belongs to the other form; forms score and yes_no have "
            "{reply}, form pairs has {reply_a} and {reply_b}"
        )


def check_columns(rubric: str, sample: Sample, index: int) -> None:
    """Raises RewardError if the rubric names a column that the sample's row does not have."""
    known = {"question", *(f"{name}{side}" for name in ("reply", "completion") for side in (*ONE, *TWO)), *sample.meta}
    if missing := sorted(set(_PLACE.findall(rubric)) - known):
        raise RewardError(
            f"judge: the rubric has {{{missing[0]}}}, which is no column of sample {index} (its columns: "
            f"{', '.join(map(str, sample.meta)) or 'none'}); correct reward.kwargs.rubric"
        )


def question_of(sample: Sample) -> str:
    """Returns the question as its row has it, else the prompt, which may hold the marks of a chat template."""
    return str(sample.meta.get("question") or text_of(sample.prompt))


def texts_of(sample: Sample) -> tuple[str, str]:
    """Returns the reply, which follows the last `</think>`, and the whole completion; no reply follows an open one."""
    end = thought_end(sample.completion, thought_is_open(sample.prompt))
    return "" if end is None else sample.completion[end:].strip(), sample.completion


def ask(rubric: str, row: Mapping[str, Any], question: str, texts: Sequence[tuple[str, str]], ending: str) -> str:
    """Fills the rubric with the row's columns and with (reply, completion) of one side or two; `ending` comes last."""
    sides = ONE if len(texts) == 1 else TWO
    values = {**row, "question": question}
    for side, (reply, completion) in zip(sides, texts, strict=True):
        values |= {f"reply{side}": reply, f"completion{side}": completion}
    # In one pass, so that braces inside a completion stay as they are.
    filled = _PLACE.sub(lambda found: str(values.get(found[1], found[0])), rubric)
    # Half a character, which a model can write and UTF-8 cannot, becomes a question mark.
    return f"{filled.rstrip()}\n\n{ending}".encode(errors="replace").decode()
