"""Where a completion says its answer: the one reading that all verifiers share. Every function takes linear time.

What is not covered: several boxes are not joined into one answer; the last one counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rewards.last_value import last_value

Extraction = Literal["strict", "lenient", "last"]
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"(?<!\\)(?:\\\\)*\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
# A formula that goes on behind the box was meant to stand in it, and a word is no answer: "write it in \\boxed and ..."
_BARE_BOX = re.compile(
    r"(?<!\\)(?:\\\\)*\\(?:boxed|fbox)\s*((?=[-+0-9A-Za-z(\[])(?![A-Za-z]{2})(?:[^\s{}$.,;\\]|[.,](?=[0-9]))++)"
    r"(?!\\[A-Za-z]|[ \t]*(?:[-+*/=<>^_{]|\\(?:[a-zA-Z]|[{}])))"
)
_PHRASE = re.compile(
    r"\banswer\b(?:[ \t]{1,3}\w{1,12}\b){0,4}?[ \t*]{0,4}(?:\bis\b|[:=\uff1a])(?:\*\*)?[ \t:]{0,4}"
    # "the answer is" in Chinese
    r"|\u7b54\u6848[ \t*]{0,4}(?:\u5c31?\u662f|\u5e94?\u4e3a|[:\uff1a])[ \t*:\uff1a]{0,4}"
    r"|^\u7b54[ \t]{0,2}[:\uff1a][ \t]{0,4}",
    re.IGNORECASE | re.MULTILINE,
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\*\*(.+?)\*\*", re.DOTALL)
_WORDS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3}")
_SENTENCE_END = re.compile(r"[.?](?:\s|$)|[\u3002\uff01\uff1f]|\n")
_ALONE = re.compile(r"[-+]?\\?\$?\s?[0-9][0-9.,/ ]*%?")
TAIL = 2_000
"""Characters at the end in which a closing phrase is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    r"""What stands where an answer is due, and where that is.

    Example: `Answer(text="7", place="boxed", start=14)` for `<think></think>\boxed{7}`
    """

    text: str
    place: Literal["answer", "boxed", "hashes", "phrase", "line", "last"]
    start: int
    """The index of the first character of `text` in the completion."""


def thought_end(completion: str, thinking: bool = False) -> int | None:
    """Returns the index after the last `</think>`; None if the completion ends inside a thought.

    `thinking` says that the prompt ended inside one.
    """
    before, closed, rest = completion.rpartition("</think>")
    if "<think>" in rest or (thinking and not closed):
        return None
    return len(before) + len(closed)


def extract_answer(completion: str, thinking: bool = False) -> str | None:
    """Returns the text of the last complete `<answer>...</answer>` after the last `</think>`; None if there is none.

    What follows an unclosed `<think>` is a thought, not an answer. `thinking` says that the prompt ended inside one.
    """
    begin = thought_end(completion, thinking)
    span = None if begin is None else _tag(completion, begin)
    return None if span is None else completion[slice(*span)].strip()


def extract(completion: str, thinking: bool = False, extraction: Extraction = "strict") -> Answer | None:
    r"""Returns the answer after the last `</think>`: the last `<answer>`, else the last `\boxed`, else the last `####`.

    A box or `####` inside the `<answer>` is opened, too. "lenient" adds closing phrases ("The answer is 7.") and a
    last line that is nothing but a number or a formula. "last" adds to these the last formula or number of the text,
    whatever it is there for; it is the weakest of the three. None if there is no such place; the text may be empty.
    """
    begin = thought_end(completion, thinking)
    if begin is None:
        return None
    end, place = len(completion), None
    if (tag := _tag(completion, begin)) is not None:
        (begin, end), place = tag, "answer"
    if (box := last_box(completion[begin:end])) is not None:
        begin, end, place = begin + box[0], begin + box[1], "boxed"
    elif (line := _last_hashes(completion, begin, end)) is not None:
        begin, end, place = *line, "hashes"
    elif place is None and extraction != "strict":
        tail = max(begin, end - TAIL)
        if found := _phrase(completion, tail):
            place = "phrase"
        elif found := _line(completion, tail):
            place = "line"
        elif extraction == "last" and (found := last_value(completion, tail)):
            place = "last"
        begin, end = found or (0, 0)
    if place is None:
        return None
    text = completion[begin:end]
    return Answer(text=text.strip(), place=place, start=begin + len(text) - len(text.lstrip()))


def last_box(text: str) -> tuple[int, int] | None:
    r"""Finds what stands in the last `\boxed{...}`, `\fbox{...}` or `\boxed 5`; of nested ones the outer."""
    box = _last_braces(text)
    bare = next(reversed(list(_BARE_BOX.finditer(text))), None)
    return bare.span(1) if bare and (box is None or bare.start() > box[1]) else box


def last_boxed(text: str) -> str | None:
    r"""Returns what a solution boxes last: the content of `\boxed{...}` or `\fbox{...}`, or the 5 of `\boxed 5`."""
    box = last_box(text)
    return text[slice(*box)].strip() if box else None


def _last_braces(text: str) -> tuple[int, int] | None:
    first = _BOX.search(text)
    if first is None:
        return None
    opened: list[tuple[int, bool]] = []
    found, is_box = None, False
    for match in _BRACES.finditer(text, first.start()):  # braces before the first box cannot close it
        token = match.group()
        if token == "{":
            opened.append((match.end(), is_box))
        elif token == "}" and opened:
            start, boxed = opened.pop()
            found = (start, match.start()) if boxed else found
        is_box = len(token) > 2
    return found


def _tag(text: str, begin: int) -> tuple[int, int] | None:
    start = text.rfind("<answer>", begin, max(text.rfind("</answer>", begin), begin))  # before the last close: complete
    if start < 0:
        return None
    start += len("<answer>")
    return start, text.index("</answer>", start)


def _last_hashes(text: str, begin: int, end: int) -> tuple[int, int] | None:
    last = text.rfind("####", begin, end)
    match = _HASHES.match(text, last, end) if last >= 0 else None
    return match.span(1) if match else None


def _phrase(text: str, begin: int) -> tuple[int, int] | None:
    matches = list(_PHRASE.finditer(text, begin))
    if not matches:
        return None
    begin = len(text) - len(text[matches[-1].end() :].lstrip())  # often on a line of its own
    if formula := _FORMULA.match(text, begin):
        return formula.span(formula.lastindex or 0)
    stop = _SENTENCE_END.search(text, begin)
    return begin, stop.start() if stop else len(text)


def _line(text: str, begin: int) -> tuple[int, int] | None:
    line = text[begin:].rstrip().rpartition("\n")[2].strip()
    start = text.rfind(line)
    formula = _FORMULA.fullmatch(text, start, start + len(line))
    if formula and not (formula.group().startswith("**") and _WORDS.search(formula.group())):
        return formula.span(formula.lastindex or 0)
    return (start, start + len(line)) if _ALONE.fullmatch(line) else None
