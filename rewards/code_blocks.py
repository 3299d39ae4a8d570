"""Finds the code blocks in the text of a completion, and says which of them is the program.

A block stands between two fences, lines of three or more backticks or tildes, as in CommonMark. Models also open a
block behind other text ("Here it is: ```python"), end one behind its last statement, and forget to end one; these are
read, too. Every function takes linear time.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LABEL = re.compile(r"[\s{.]*([\w+#.-]*)")
_PYTHON = re.compile(r"i?py(?:thon)?[0-9.]*|[\w-]+\.py")
_READS = re.compile(r"\b(?:input\b\s?[(,)]|stdin\b(?!\s*=)|open\(0\b|fileinput\b|os\.read\(0\b)")
_WRITES = re.compile(r"\b(?:print\b|stdout\b(?!\s*=)|os\.write\b)")
_COMMENT = re.compile(r"#[^\n]*")
_STRINGS = re.compile(
    r"\\.|#[^\n]*|\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|(\"{3}|'{3})|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'",
    re.DOTALL,
)
"""Comments and strings of Python. The group is the beginning of a docstring that has no end."""
NEAR = 8
"""How many fences further on the end of a block is looked for whose docstring is open at the first."""
MARGIN = 4
"""A fence that stands this much further right than the one that opened the block is mostly part of a docstring."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block, with the first word behind its opening fence in small letters, and its lines.

    Example: `Block("python", "x = 1")` for a block that "```Python main.py" opens
    """

    label: str
    text: str

    @property
    def is_python(self) -> bool:
        """Whether the label says so, as python, py, python3 and main.py do."""
        return _PYTHON.fullmatch(self.label) is not None


@dataclass(frozen=True, slots=True)
class _Fence:
    """The last run of backticks or tildes in a line, and what stands around it."""

    before: str
    marks: str
    info: str

    @property
    def label(self) -> str:
        found = _LABEL.match(self.info)
        return found[1].lower() if found else ""

    @property
    def indent(self) -> int | None:
        """The column in which it stands, if it is the first thing in its line."""
        return None if self.before.strip() else len(self.before.expandtabs())

    @property
    def is_second(self) -> bool:
        """Whether it ends a piece of code that another fence in the same line begins."""
        return self.before.count(self.marks[:3]) % 2 == 1

    @property
    def opens(self) -> bool:
        """Whether it can begin a block. Behind other text it must look like it, for a sentence may end in a fence."""
        if self.marks[0] in self.info or self.is_second:
            return False
        return self.indent is not None or not self.info or Block(self.label, "").is_python

    def may_end(self, opening: _Fence) -> bool:
        """Whether it could end the block, though it stands behind a statement or far to the right."""
        return self.marks.startswith(opening.marks) and not self.info and not self.is_second

    def is_within(self, opening: _Fence) -> bool:
        """Whether it belongs to the text of the block: it is shorter, of the other sign, or far to the right."""
        far = opening.indent is not None and self.indent is not None and self.indent >= opening.indent + MARGIN
        return not self.marks.startswith(opening.marks) or far


def blocks_of(text: str, is_whole: bool = False) -> list[Block]:
    """Returns the blocks of a text, in order. The last may lack its end only if the text `is_whole`, not cut off.

    Where a block holds text, as one of markdown does, the Python blocks inside of it count in its place.
    """
    found: list[Block] = []
    for block in _outer_blocks(text, is_whole):
        is_text = block.label in ("", "md", "markdown")
        inner = [one for one in _outer_blocks(block.text, is_whole=True) if one.is_python] if is_text else []
        found += inner or [block]
    return found


def _outer_blocks(text: str, is_whole: bool) -> list[Block]:
    lines = text.split("\n")
    fences = [_fence(line) for line in lines]
    better_end_follows = _closing_follows(fences)
    found: list[Block] = []
    opening: _Fence | None = None
    begin = resume = 0
    for index, fence in enumerate(fences):
        if fence is None or index < resume:
            continue
        if opening is None:
            opening, begin = (fence if fence.opens else None), index + 1
        elif fence.indent is not None and not fence.is_within(opening):
            if end := _later_end(opening, lines, fences, begin, index):
                found.append(_block(opening, lines[begin:end]))
                opening, resume = None, end + 1
                continue
            if not fence.info:
                found.append(_block(opening, lines[begin:index]))
            # A fence with a label begins the next block, and the one before has no end.
            opening, begin = (fence if fence.info else None), index + 1
        elif fence.may_end(opening) and not better_end_follows[index]:
            found.append(_block(opening, [*lines[begin:index], fence.before]))
            opening = None
    if opening is not None and is_whole:
        found.append(_block(opening, lines[begin:]))
    return found


def _later_end(
    opening: _Fence, lines: Sequence[str], fences: Sequence[_Fence | None], begin: int, index: int
) -> int | None:
    """Returns where a block ends if the fence at `index` stands in a docstring of it, which has its end before another.

    A docstring that is open where the block ends is no Python in any case, so nothing is lost by looking further.
    """
    if not _has_open_string("\n".join(lines[begin:index])):
        return None
    following = (at for at in range(index + 1, len(lines)) if fences[at] is not None)
    for at in itertools.islice(following, NEAR):
        fence = fences[at]
        if fence is None or fence.info or fence.indent is None or fence.is_within(opening):
            continue
        if not _has_open_string("\n".join(lines[begin:at])):
            return at
    return None


def _has_open_string(code: str) -> bool:
    """Whether code ends within a string of three quotes."""
    if '"""' not in code and "'''" not in code:
        return False
    return any(found[1] for found in _STRINGS.finditer(code))


def _fence(line: str) -> _Fence | None:
    at = max(line.rfind("```"), line.rfind("~~~"))
    if at < 0:
        return None
    before = line[:at].rstrip(line[at])
    return _Fence(before, line[len(before) : at + 3], line[at + 3 :].strip())


def _closing_follows(fences: Sequence[_Fence | None]) -> list[bool]:
    """Returns for each line whether a later one ends the block that is open there, if one is.

    Up to the next fence with a label, which begins a block, those without one begin and end blocks by turns. So if
    their number is odd the first of them ends what is open.
    """
    follows, is_odd = [], False
    for fence in reversed(fences):
        follows.append(is_odd)
        if fence is not None and fence.indent is not None and fence.indent < MARGIN:
            is_odd = not fence.info and not is_odd
    return follows[::-1]


def _block(opening: _Fence, lines: Sequence[str]) -> Block:
    return Block(opening.label, textwrap.dedent("\n".join(lines)))


def choose(blocks: Sequence[Block], *wanted: Callable[[str], bool]) -> str | None:
    """Returns the last block that meets the first of these wishes that one meets, or the last one if none does.

    Those that are called Python come before others of which the same is true.
    """
    written = [block for block in blocks if block.text.strip()]
    python = [block.text for block in written if block.is_python]
    unlabelled = [block.text for block in written if not block.label]
    for is_wanted in (*wanted, bool):
        for texts in (python, unlabelled):
            for text in reversed([text for text in texts if is_wanted(text)]):
                return text
    return None


def defines(name: str) -> Callable[[str], bool]:
    """Returns a test of whether code has a function, method, class or variable of that name."""
    pattern = re.compile(rf"^[ \t]*(?:(?:async )?def|class) +{re.escape(name)}\b|^{re.escape(name)} *=(?!=)", re.M)
    return lambda code: pattern.search(code) is not None


def reads_input(code: str) -> bool:
    """Whether code looks at its input, apart from what its comments say."""
    return _READS.search(_COMMENT.sub("", code)) is not None


def answers_input(code: str) -> bool:
    """Whether code looks at its input and also prints: an excerpt that explains one line mostly does only one."""
    return reads_input(code) and _WRITES.search(_COMMENT.sub("", code)) is not None
