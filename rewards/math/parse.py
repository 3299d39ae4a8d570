r"""Reads the tokens of an answer into a tree of nested tuples `(kind, ...)`.

Numbers are ("num", Fraction), decimals ("dec", Fraction); "sym", "add", "mul", "neg", "div", "pow", "root", "fn",
"app", "fact", "abs", "pct", "deg", "pm", "mp" build expressions; "based" is a numeral with a base; "list", "tuple"
(also an interval: it keeps its brackets), "set", "those" (a set with a condition), "union", "inter", "minus", "matrix",
"chain" (of relations), "cases", "logic", "mod", "ratio", "clock", "unit", "mixed" (hours and minutes) and "text" build
answers. What is not covered: integrals and the like (see `Symbolic`).
"""

from __future__ import annotations

import re
from itertools import pairwise

from rewards.math.expressions import Expressions, Symbolic, Tree, integer
from rewards.math.notation import (
    AND,
    ARITHMETIC,
    CLOSING,
    INEQUALITIES,
    MATRICES,
    OR,
    RELATIONS,
    SEPARATORS,
    SETS,
    SYSTEMS,
)
from rewards.math.text import Unread
from rewards.math.tokens import Token, tokenize
from rewards.math.units import can_be_unit, read_unit
from rewards.math.value import variables, walk

__all__ = ["Symbolic", "Tree", "parse"]
_DOUBT = "not?|never|cannot|wrong|incorrect|false|impossible|unlikely|maybe|perhaps|possibly|probably|if|unless|either"
_OTHER = (
    r"(?:its|their|whose)\s+(?:\w+\s+)?(?:square|cube|root|negative|opposite|reciprocal|inverse|double|half|factorial)"
)
_BOUND = r"(?:than|at\s+least|at\s+most|above|below|over|under|beyond|plus|minus|times)\s*(?::|$)"
_SAYS = re.compile(
    rf"(?!.*(?:n't|\b(?:{_DOUBT}|{_OTHER}))\b)(?!.*\b{_BOUND})(.*\S)\s*(?::|\bis|\bare)", re.IGNORECASE | re.DOTALL
)
"""A text that names the value behind it: "Alice:", "The area is"."""
_WHEN = re.compile(r"(?:if|when|for|where|as)\b\s*", re.IGNORECASE)


def parse(text: str) -> Tree:
    """Returns the tree of a cleaned text; raises Explodes, Symbolic and Unread."""
    tree = _parsed(tokenize(text))
    for node in walk(tree):
        # Computer algebra multiplies matrices as well as we could, and can be killed while it does.
        if node[0] in ARITHMETIC and any(child[0] == "matrix" for child in node[1:] if isinstance(child, tuple)):
            raise Symbolic("arithmetic with matrices")
    return tree


def _parsed(tokens: list[Token]) -> Tree:
    if not tokens:
        raise Unread("nothing there")
    parser = _Answers(tokens)
    tree = parser.items()
    if parser.at < len(tokens):
        raise Unread(f"{tokens[parser.at].value[:20]!r} is out of place")
    return tree


class _Answers(Expressions):
    """Reads what answers are made of beyond one value: lists, relations, sets, ratios, quantities, matrices."""

    def items(self) -> Tree:
        items, separators = [self.item()], []
        while separator := self.separator():
            separators.append(separator)
            items.append(self.item())
        if not separators:
            return items[0]
        # Statements are joined by a sign of logic that matters; values and conditions are told apart below.
        logic = next((sign for sign in separators if sign.startswith("\\")), None)
        if logic and any(item[0] == "sym" and len(item[1]) == 1 for item in items):
            return ("logic", logic, *items)  # of statements p and q, not of values
        if any(map(_is_condition, items)):
            # Of conditions joined by "or" one must hold, joined by "and" all of them. A comma leaves that open.
            if any(separator in OR for separator in separators):
                return ("union", *_groups(items, separators, OR))
            if AND.issuperset(separators) and len(set().union(*map(variables, items))) == 1:
                return ("inter", *items)
        # In 1,2;3,4 the semicolons stand between pairs.
        if {",", ";"} <= set(separators):
            groups = _groups(items, separators, {";"})
            if len({len(group) for group in groups}) == 1 and groups[0][0] == "list":
                is_named = any(item[0] == "chain" for item in items)
                return ("list", *(group if is_named else ("tuple", "(", ")", *group[1:]) for group in groups))
        if AND.issuperset(separators) and _is_one_quantity(items):
            return ("mixed", *items)
        return ("list", *items)

    def separator(self) -> str:
        """Steps over what separates two values, and returns the strongest of it: ", or" is "or"."""
        found = ""
        while (token := self.peek()).kind in ("op", "cmd") and token.value in SEPARATORS:
            self.at += 1
            if not found or token.value in OR or (token.value in AND and found not in OR):
                found = token.value
        return found

    def item(self) -> Tree:
        if self.take("\\ldots"):
            return ("sym", "\\ldots")
        if label := self.label():
            return ("chain", (label, self.item()), ("=",))
        if point := self.point():
            return point
        members, relations = [self.applied() or self.sets()], []
        while (token := self.peek()).kind in ("op", "cmd") and token.value in RELATIONS:
            self.at += 1
            relation = RELATIONS[token.value]
            if self.take("="):
                relation = {"<": "<=", ">": ">="}.get(relation, relation)
            relations.append(relation)
            members.append(self.sets())
        return members[0] if len(members) == 1 else ("chain", tuple(members), tuple(relations))

    def label(self) -> Tree | None:
        """Returns a text that names the value behind it, or None."""
        token, says = self.peek(), None
        if token.kind == "text" and self.peek(1).value not in ("", "}"):
            says = _SAYS.fullmatch(token.value + (":" if self.peek(1).value == ":" else ""))
        if says is None:
            return None
        self.at += 2 if self.peek(1).value == ":" else 1
        return ("text", says[1].casefold())

    def point(self) -> Tree | None:
        """Returns a named point such as `A(1, 2)`, or the equation of a named line such as `l: y = 2x`.

        Returns None for anything else.
        """
        name = self.peek()
        if name.kind != "let":
            return None
        if name.value in "lLC" and self.peek(1).value == ":":
            rest = [token.value for token in self.tokens[self.at + 2 :]]
            letters = [value for value in rest if len(value) == 1 and value.isalpha()]
            if "=" in rest and ":" not in rest and len(set(letters)) > 1:
                self.at += 2
                return self.item()
        if not name.value.isupper() or self.peek(1).value != "(":
            return None
        end = self.behind(self.at + 1)
        inside = _split(self.tokens[self.at + 2 : end - 1], ",")
        if len(inside) < 2 or self.is_condition(self.at + 2, end - 1) or self.peek(end - self.at).value == "=":
            return None
        self.at += 1
        return ("chain", (("sym", name.value), self.sets()), ("=",))

    def applied(self) -> Tree | None:
        """Returns the left side of `P(2) = 5`, `Var(X) = 2`: a letter or a word before a bracket and a relation.

        Returns None for anything else.
        """
        token = self.peek()
        if token.kind not in ("let", "text") or self.peek(1).value != "(":
            return None
        end = self.behind(self.at + 1)
        inside = self.tokens[self.at + 2 : end - 1]
        is_applied = self.peek(end - self.at).value == "=" and all(
            part.kind in ("let", "num") or part.value in (",", "-") for part in inside
        )
        if token.value in "EDPV" and self.peek(end - self.at).value == "=":  # an expectation, a probability
            name = ("sym", self.written(self.at, end))
            self.at = end
            return name
        if not is_applied or (token.kind == "let" and len(inside) > 1 and inside[1].value != ","):
            return None
        self.at += 1
        return ("app", token.value, self.primary())

    def sets(self) -> Tree:
        """Reads a ratio or value, perhaps in unions, intersections and differences."""
        tree = self.ratio()
        while (token := self.peek()).kind == "cmd" and token.value in SETS:
            self.at += 1
            tree = (SETS[token.value], tree, self.ratio())
        return tree

    def ratio(self) -> Tree:
        """Reads one quantity, or several with colons between them."""
        terms, kind = [self.measured()], "ratio"
        while self.take(":"):
            kind = "clock" if re.fullmatch("0[0-9]", self.peek().value) else kind  # 10:05
            terms.append(self.measured())
        return terms[0] if len(terms) == 1 else (kind, *terms)

    def measured(self) -> Tree:
        """Reads a value with its unit; two in a row are one quantity, such as 2 hours 30 minutes."""
        tree = self.sum()
        if self.take("\\pmod"):
            return ("mod", tree, self.argument())
        words: list[str] = []
        while True:
            token = self.peek()
            if token.kind in ("text", "unit"):
                self.at += 1
                if not words or words[-1] != token.value:  # \$5 \text{ dollars}
                    words.append(token.value)
                if self.take("^"):
                    words.append(f"^{integer(self.exponent())}")
            elif words and token.value in ("/", "\\cdot") and self.peek(1).kind in ("text", "unit"):
                self.at += 1
                words.append(token.value)
            else:
                break
        if not words:
            return tree
        if tree[0] == "text":
            return ("text", " ".join([tree[1], *words]).casefold())
        name = " ".join(words)
        if not can_be_unit(name):
            raise Unread(f"{name[:40]!r} is no unit")
        quantity = ("unit", tree, name)
        if self.peek().kind != "num":
            return quantity
        parts = [quantity, self.measured()]
        if not _is_one_quantity(parts):
            raise Unread("two quantities side by side")
        return ("mixed", *parts)

    def bracketed(self, opening: str) -> Tree:
        bars, self.bars = self.bars, 0
        tree = self.builder() if opening in ("\\{", "{") and self.is_builder() else None
        if tree is None:
            empty = opening == "\\{" and self.peek().value == "\\}"
            tree = ("list",) if empty else self.items()
            if opening == "{" and self.take("\\choose"):
                tree = ("fn", "\\binom", tree, self.items())
        closing = self.expect(*(CLOSING[opening] if opening != "{" else "}"))
        self.bars = bars
        if tree[0] == "those" or (opening == "{" and tree[0] != "list"):
            return tree
        if opening in ("\\{", "{"):
            return ("set", *(tree[1:] if tree[0] == "list" else (tree,)))
        if opening in ("\\lfloor", "\\lceil"):
            return ("fn", opening, tree)
        if tree[0] == "list":
            ends = ("(", ")") if opening == "\\langle" else (opening, closing)
            return ("tuple", *ends, *tree[1:])
        if opening == "\\langle" or (opening == "(") != (closing == ")"):
            raise Unread("an interval with one end")
        return tree

    def is_builder(self) -> bool:
        r"""Returns whether a bracket that was just opened holds a bar or colon with a condition: `\{x \mid x > 2\}`."""
        inside = self.tokens[self.at : self.behind(self.at - 1) - 1]
        bars = [token.value for token in inside if token.value in ("|", ":", "\\mid")]
        relations = [token for token in inside if token.value in RELATIONS]
        return bool(relations) and bool(bars) and (bars.count("|") % 2 == 1 or "\\mid" in bars or ":" in bars)

    def builder(self) -> Tree:
        """Returns the element and the condition of a set, up to its closing bracket."""
        self.bars = 1  # the next bar ends the element, it opens no absolute value
        members, relations = [self.sum()], []
        if self.take("\\in"):
            members, relations = [*members, self.sum()], ["in"]
        self.bars = 0
        self.expect("|", ":", "\\mid")
        element = ("chain", tuple(members), tuple(relations)) if relations else members[0]
        return ("those", element, self.items())

    def environment(self, name: str) -> Tree:
        start = self.at
        self.at = self.end_of_environment()
        inside = self.tokens[start : self.at - 1]
        if name not in MATRICES | SYSTEMS:
            raise Symbolic(f"the environment {name}") if name == "vmatrix" else Unread(name[:20])
        if name == "array":
            columns = _Answers(inside)
            columns.expect("{")
            inside = inside[columns.behind(0) :]
        rows = [_split(row, "&") for row in _split(inside, "\\\\") if row]
        if name in SYSTEMS:
            return _system(rows)
        matrix = [tuple(_parsed(cell) for cell in row) for row in rows]
        if len({len(row) for row in matrix}) != 1:
            raise Unread("a matrix with rows of different lengths")
        if name == "array" and len(matrix) == len(matrix[0]) == 1:  # it only sets one value in its place
            return matrix[0][0]
        return ("matrix", *matrix)

    def end_of_environment(self) -> int:
        """Returns the index behind the \\end that belongs to the \\begin before; raises Unread without one."""
        depth = 1
        for index in range(self.at, len(self.tokens)):
            depth += (self.tokens[index].kind == "begin") - (self.tokens[index].kind == "end")
            if depth == 0:
                return index + 1
        raise Unread("an environment without an end")


def _split(tokens: list[Token], sign: str) -> list[list[Token]]:
    """Returns the pieces of a list of tokens between the signs that stand in no inner environment."""
    pieces: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.kind == "begin") - (token.kind == "end")
        if depth == 0 and token.kind in ("op", "cmd") and token.value == sign:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces


def _system(rows: list[list[list[Token]]]) -> Tree:
    """Returns equations below each other as a list, and values with their conditions as cases."""
    rows = [[_trimmed(cell) for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    if not rows:
        raise Unread("a system of nothing")
    is_aligned = all(len(row) == 1 or (row[1][:1] and row[1][0].value in RELATIONS) for row in rows)
    if is_aligned:  # x &= 1
        lines = [_parsed([token for cell in row for token in cell]) for row in rows]
        if all(line[0] == "list" and len(line) == 3 and line[2][0] == "chain" != line[1][0] for line in lines):
            return ("cases", *(line[1:] for line in lines))  # 1, n = 1 without a second column
        return lines[0] if len(lines) == 1 else ("list", *lines)
    if any(len(row) != 2 for row in rows):
        raise Unread("cases without conditions")
    return ("cases", *((_parsed(value), _condition(condition)) for value, condition in rows))


def _condition(tokens: list[Token]) -> Tree:
    while tokens and tokens[0].value == ",":  # what is left of "for" and "where"
        tokens = tokens[1:]
    if tokens and tokens[0].kind == "text" and (when := _WHEN.match(tokens[0].value)):
        rest = tokens[0].value[when.end() :]
        tokens = ([Token("text", rest)] if rest else []) + tokens[1:]
    try:
        return _parsed(tokens)
    except Unread:
        return ("text", " ".join(token.value for token in tokens).casefold())


def _trimmed(tokens: list[Token]) -> list[Token]:
    """Returns a cell without a comma, semicolon or full stop behind it."""
    while tokens and tokens[-1].kind == "op" and tokens[-1].value in (",", ";", "."):
        tokens = tokens[:-1]
    return tokens


def _is_condition(tree: Tree) -> bool:
    return tree[0] == "chain" and not INEQUALITIES.isdisjoint(tree[2])


def _groups(items: list[Tree], separators: list[str], between: frozenset[str] | set[str]) -> list[Tree]:
    """Returns the items between these separators: one alone, or several as a list."""
    groups: list[list[Tree]] = [[items[0]]]
    for separator, item in zip(separators, items[1:], strict=True):
        if separator in between:
            groups.append([item])
        else:
            groups[-1].append(item)
    return [group[0] if len(group) == 1 else ("list", *group) for group in groups]


def _is_one_quantity(parts: list[Tree]) -> bool:
    """Returns whether measures of one kind follow each other from large to small: 2 hours and 30 minutes."""
    if any(part[0] not in ("unit", "mixed") for part in parts):
        return False
    units = [read_unit((part if part[0] == "unit" else part[1])[2]) for part in parts]
    falling = all(left.scale > right.scale for left, right in pairwise(units))
    return falling and units[0].dimension is not None and len({unit.dimension for unit in units}) == 1
