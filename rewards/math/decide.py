"""Gives the verdict on one answer as far as one judge can tell; the same steps run in the caller and in a worker."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from rewards.math.compare import Comparison
from rewards.math.constants import with_constants_of
from rewards.math.expressions import Symbolic, Tree
from rewards.math.judge import TooFine
from rewards.math.read import read
from rewards.math.text import Explodes, Unread, clean
from rewards.math.value import FLOATS, Evaluation, TooLong, Undefined, Work, exact, variables, walk

Outcome = Literal[
    "correct", "wrong", "unparsable", "guard", "timeout", "gold_unparsable", "worker_lost", "undecided", "symbolic"
]
"""The last two are no verdicts: a worker with more digits or time, or with computer algebra, has to say."""
MAX_SYMBOLIC_NUMBER = 9_999
"""Sums, products and integrals with a larger number in them are not handed to computer algebra."""
MAX_STEPS = 20_000
"""A comparison that takes more steps, which is about 0.1 s, goes to a worker: the caller's process cannot be killed."""


def decide(gold: str, answer: str, comparison: Comparison) -> Outcome:
    """Reads both texts and compares them; neither is ever evaluated as code. Raises TooFine, and no other exception.

    Whatever an answer does to this code is the answer's fault as long as the gold alone can be read, so that no text
    of a policy ends its run or hides from its 0.
    """
    is_limited = not comparison.judge.digits
    try:
        return _decided(gold, answer, comparison.limited(MAX_STEPS) if is_limited else comparison)
    except TooFine:
        raise
    except TooLong:
        return "undecided"
    except Exception:  # a text that nobody thought of
        return "unparsable" if is_readable(gold) else "gold_unparsable"


def is_readable(gold: str) -> bool:
    """Returns whether a gold answer can be read, and its parts be worked out or handed to computer algebra."""
    try:
        return not any(map(_explodes, _defined(gold, is_gold=True)))
    except Symbolic:
        return not _is_heavy_symbolic(gold)
    except Exception:
        return False


def _decided(gold: str, answer: str, comparison: Comparison) -> Outcome:
    # The gold comes first: if it cannot be read, nothing can be said of any answer. Once it is read, every answer gets
    # a verdict, whatever it is.
    symbolic = False
    try:
        golds = _defined(gold, is_gold=True)
    except Symbolic:
        if _is_heavy_symbolic(gold):
            return "correct" if _same_text(gold, answer) else "gold_unparsable"
        golds, symbolic = (), True
    except (Unread, Undefined, Explodes):
        return "gold_unparsable"
    try:
        answers = _defined(answer)
    except Symbolic:
        if _same_text(gold, answer):
            return "correct"
        return "guard" if _is_heavy_symbolic(answer) else "symbolic"
    except (Unread, Undefined):
        return "unparsable"
    except Explodes:
        return "guard"
    if symbolic:
        return "guard" if _is_heavy_symbolic(answer) else "symbolic"
    return _compared(golds, answers, comparison)


def stated_sides(text: str) -> list[str]:
    r"""Returns the sides of an equation that state its value: `x = \sum_{k=1}^3 k = 6` has two, for x is a name."""
    text = clean(text)
    sides, depth, start = [], 0, 0
    for match in re.finditer(r"\\approx(?![A-Za-z])|\\[{}]|\\.|[<>:!]=|[(){}\[\]=]", text):
        sign = match.group().lstrip("\\")
        depth += (sign in ("(", "[", "{")) - (sign in (")", "]", "}"))
        if depth == 0 and sign in ("=", "approx"):
            sides.append(text[start : match.start()].strip())
            start = match.end()
    sides.append(text[start:].strip())
    return sides[1:] if len(sides) > 1 and _is_name(sides[0]) else sides


def _is_name(text: str) -> bool:
    try:
        [tree] = read(text)
    except ValueError:
        return False
    return tree[0] == "text" or bool(variables(tree))


def _compared(golds: tuple[Tree, ...], answers: tuple[Tree, ...], comparison: Comparison) -> Outcome:
    """Returns the verdict on the readings of both texts; one pair that agrees is enough."""
    verdicts: list[bool | None] = []
    try:
        for gold in golds:
            for answer in answers:
                verdicts.append(comparison.equal(gold, with_constants_of(gold, answer)))
                if verdicts[-1]:
                    return "correct"
    except (Explodes, RecursionError):
        return "gold_unparsable" if any(map(_explodes, golds)) else "guard"
    except (Undefined, TypeError):  # TypeError: an interval or a list stands where a single value must
        return "unparsable"
    return "undecided" if None in verdicts else "wrong"


@lru_cache(maxsize=8_192)
def _defined(text: str, is_gold: bool = False) -> tuple[Tree, ...]:
    """Returns the readings of a text; raises Undefined for a division by zero in it, and what `read` raises."""
    readings, work = read(text, is_gold), Work()
    for node in (node for tree in readings for node in walk(tree)):
        if node[0] in ("div", "pow"):
            try:
                exact(node, {}, work)
            except Explodes:
                continue  # 2^(10^9) may still equal the other side as it is written
    return readings


def _explodes(tree: Tree) -> bool:
    """Returns whether a gold answer itself is too large to be worked out."""
    work = Work()
    for node in walk(tree):
        try:
            exact(node, {}, work)
            if node[0] in ("pow", "fact", "fn"):
                Evaluation(arithmetic=FLOATS)(node)
        except Explodes:
            return True
        except (Undefined, OverflowError, TypeError, ZeroDivisionError):
            continue
    return False


def _same_text(gold: str, answer: str) -> bool:
    return re.sub(r"\s", "", clean(gold)) == re.sub(r"\s", "", clean(answer))


def _is_heavy_symbolic(text: str) -> bool:
    """Returns whether computer algebra could be kept busy for ever: large bounds, towers, factorials, deep nesting."""
    has_bounds = re.search(r"\\(?:sum|prod|int|oint|iint|lim)(?![A-Za-z])", text)
    numbers = [int(number) for number in re.findall(r"\d+", text)] if has_bounds else []
    tower = re.search(r"\^\s*\{[^{}]*\^|\^\s*[^{}\s]\s*\^|!\s*!|\d\s*[eE]\s*[-+]?\d", text)
    return tower is not None or max(numbers, default=0) > MAX_SYMBOLIC_NUMBER or text.count("{") > 100
