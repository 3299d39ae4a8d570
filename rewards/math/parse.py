r"""Reads the tokens of an answer into a tree of nested tuples `(kind, ...)`.

Numbers are ("num", Fraction), decimals ("dec", Fraction); "sym", "add", "mul", "neg", "div", "pow", "root", "fn",
"app", "fact", "abs", "pct", "deg", "pm", "mp" build expressions; "based" is a numeral with a base; "list", "tuple"
(also an interval: it keeps its brackets), "set", "union", "inter", "minus", "matrix", "chain" (of relations), "mod",
"ratio", "clock", "unit" and "text" build answers. What is not covered: integrals and the like (see `Symbolic`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rewards.math.notation import CLOSING, ENDS, MATRICES, RELATIONS, SETS, SYMBOLIC
from rewards.math.numerals import based, repeating
from rewards.math.text import FUNCTIONS, Explodes, Token, Unread, tokenize
from rewards.math.units import can_be_unit

Tree = tuple[Any, ...]
MAX_DEPTH = 40
MAX_FACTORS = 100
"""Of one product: its tree is as deep as it has factors."""


class Symbolic(Unread):
    """Mathematics that only a computer algebra system reads: integrals, sums, limits, cases."""


def parse(text: str) -> Tree:
    """The tree of a cleaned text; raises Explodes, Symbolic and Unread."""
    tokens = tokenize(text)
    if not tokens:
        raise Unread("nothing there")
    parser = _Parser(tokens)
    tree = parser.items()
    if parser.at < len(tokens):
        raise Unread(f"{tokens[parser.at].value[:20]!r} is out of place")
    return tree


def _integer(tree: Tree) -> int | None:
    return int(tree[1]) if tree[0] == "num" and tree[1].denominator == 1 else None


class _Parser:
    """Recursive descent over the tokens; each method reads one kind of thing and stops behind it."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at, self.depth, self.bars = tokens, 0, 0, 0

    def peek(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("op", "")

    def take(self, *values: str) -> bool:
        token = self.peek()
        if token.kind in ("op", "cmd") and token.value in values:
            self.at += 1
            return True
        return False

    def expect(self, *values: str) -> str:
        token = self.peek()
        if not self.take(*values):
            raise Unread(f"{values[0]!r} is missing")
        return token.value

    def items(self) -> Tree:
        items = [self.item()]
        while self.take(",", ";", "\\&") or self.separator():
            while self.take(",", ";") or self.separator():
                pass
            items.append(self.item())
        return items[0] if len(items) == 1 else ("list", *items)

    def separates(self) -> bool:
        token = self.peek()
        return token.kind == "text" and token.value.strip(" ,.").casefold() in ("and", "or", "and/or", "")

    def separator(self) -> bool:
        found = self.separates()
        self.at += found
        return found

    def item(self) -> Tree:
        if self.take("\\ldots"):
            return ("sym", "\\ldots")
        members, relations = [self.sets()], []
        while (token := self.peek()).kind in ("op", "cmd") and token.value in RELATIONS:
            self.at += 1
            relation = RELATIONS[token.value]
            if self.take("="):
                relation = {"<": "<=", ">": ">="}.get(relation, relation)
            relations.append(relation)
            members.append(self.sets())
        return members[0] if len(members) == 1 else ("chain", tuple(members), tuple(relations))

    def sets(self) -> Tree:
        tree = self.ratio()
        while (token := self.peek()).kind == "cmd" and token.value in SETS:
            self.at += 1
            tree = (SETS[token.value], tree, self.ratio())
        return tree

    def ratio(self) -> Tree:
        terms, kind = [self.measured()], "ratio"
        while self.take(":"):
            kind = "clock" if re.fullmatch("0[0-9]", self.peek().value) else kind  # 10:05
            terms.append(self.measured())
        return terms[0] if len(terms) == 1 else (kind, *terms)

    def measured(self) -> Tree:
        tree = self.sum()
        if self.take("\\pmod"):
            return ("mod", tree, self.argument())
        words: list[str] = []
        while True:
            token = self.peek()
            if token.kind in ("text", "unit") and not self.separates():
                self.at += 1
                words.append(token.value)
                if self.take("^"):
                    words.append(f"^{_integer(self.exponent())}")
            elif words and token.value in ("/", "\\cdot") and self.peek(1).kind in ("text", "unit"):
                self.at += 1
                words.append(token.value)
            else:
                break
        if not words:
            return tree
        if tree[0] == "text":
            return ("text", " ".join([tree[1], *words]).casefold())
        name = " ".join(words).casefold()
        if not can_be_unit(name):
            raise Unread(f"{name[:40]!r} is no unit")
        return ("unit", tree, name)

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Explodes(f"more than {MAX_DEPTH} levels of brackets")
        terms = []
        while True:
            sign = next((name for name in ("+", "-", "\\pm", "\\mp") if self.take(name)), "" if not terms else None)
            if sign is None:
                break
            term = self.term()
            kind = {"-": "neg", "\\pm": "pm", "\\mp": "mp"}.get(sign)
            terms.append(term if kind is None else self.negated(kind, term))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def negated(self, kind: str, term: Tree) -> Tree:
        if kind == "neg" and term[0] in ("num", "dec"):
            return (term[0], -term[1])
        return (kind, term)

    def term(self) -> Tree:
        tree = self.signed()
        for _ in range(MAX_FACTORS):
            if self.take("*", "\\cdot", "\\times"):
                tree = ("mul", tree, self.signed())
            elif self.take("/", "\\div"):
                tree = ("div", tree, self.signed())
            elif self.starts_factor():
                last, token = self.peek(-1), self.peek()
                group_of_digits = token.value == "{" and self.peek(1).kind == "num"
                if last.kind == "num" and (group_of_digits or (token.kind == "num" and not self.is_mixed(tree))):
                    raise Unread("two numbers side by side")
                factor = self.factor()
                tree = self.joined(tree, factor, last)
            else:
                return tree
        raise Explodes(f"more than {MAX_FACTORS} factors")

    def is_mixed(self, tree: Tree) -> bool:
        return _integer(tree) is not None and self.peek(1).value == "/" and self.peek(2).kind == "num"

    def joined(self, tree: Tree, factor: Tree, last: Token) -> Tree:
        """A whole number right before a proper fraction is a mixed number: `2\\frac{1}{2}` and `2 1/2` are 5/2."""
        whole = _integer(tree)
        if whole is not None and last.kind == "num":
            if factor[0] in ("pct", "deg"):
                return (factor[0], self.joined(tree, factor[1], last))
            if factor[0] == "num" and self.take("/"):
                factor = ("div", factor, self.factor())
            if factor[0] == "div":
                top, bottom = _integer(factor[1]), _integer(factor[2])
                if top is not None and bottom is not None and 0 <= top < bottom:
                    return ("num", whole + Fraction(top, bottom))
        return ("mul", tree, factor)

    def signed(self) -> Tree:
        is_negative = False
        while (sign := self.peek().value) in ("+", "-") and self.take(sign):
            is_negative ^= sign == "-"
        return self.negated("neg", self.factor()) if is_negative else self.factor()

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind in ("op", "cmd"):
            return bool(token.value) and token.value not in ENDS and not (token.value == "|" and self.bars)
        return token.kind in ("num", "let", "repeat") or (token.kind == "begin")

    def factor(self) -> Tree:
        tree = self.primary()
        while True:
            token = self.peek()
            if token.kind not in ("op", "cmd"):
                return tree
            if self.take("^"):
                if self.take("\\circ"):
                    tree = ("deg", tree)
                elif self.peek().value == "\\prime" or self.peek().value == "'":
                    tree = ("sym", f"{tree!r}'")
                    self.at += 1
                else:
                    tree = ("pow", tree, self.exponent())
            elif self.take("_"):
                tree = self.subscripted(tree)
            elif self.take("!"):
                if self.take("!"):
                    raise Unread("a double factorial")
                tree = ("fact", tree)
            elif self.take("%", "\\%"):
                tree = ("pct", tree)
            elif self.take("'"):
                tree = ("sym", f"{tree!r}'")
            elif self.take("\\circ"):
                tree = ("deg", tree)
            else:
                return tree

    def subscripted(self, tree: Tree) -> Tree:
        start = self.at
        subscript = self.argument()
        base = _integer(subscript)
        if tree[0] in ("num", "dec") and base is not None:
            return based(self.tokens[start - 2].value, base)
        if tree[0] != "sym":
            raise Unread("a subscript of something that is no name")
        return ("sym", f"{tree[1]}_{subscript!r}")

    def exponent(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Explodes(f"more than {MAX_DEPTH} levels of exponents")
        is_negative = self.take("-")
        tree = self.primary()
        if self.take("^"):
            tree = ("pow", tree, self.exponent())
        self.depth -= 1
        return self.negated("neg", tree) if is_negative else tree

    def argument(self, one_digit: bool = False) -> Tree:
        """What a LaTeX command takes: a group, or one token; of a number only its first digit if `one_digit`."""
        token = self.peek()
        if one_digit and token.kind == "num" and len(token.value) > 1 and token.value.isdigit():
            self.tokens[self.at] = Token("num", token.value[1:])
            return ("num", Fraction(token.value[0]))
        return self.primary()

    def primary(self) -> Tree:
        token = self.peek()
        self.at += 1
        if token.kind == "num":
            if len(token.value) > 1 and not token.value.isdigit():
                return ("dec", Fraction(token.value))
            return ("num", Fraction(token.value))
        if token.kind == "let":
            if token.value in "fgh" and self.peek().value == "(":
                return ("app", token.value, self.primary())
            return ("sym", token.value)
        if token.kind == "repeat":
            return ("num", repeating(token.value))
        if token.kind in ("text", "unit"):
            return ("text", token.value.casefold())
        if token.kind == "begin":
            return self.matrix(token.value)
        if token.value == "{" or token.value in CLOSING:
            return self.group() if token.value == "{" else self.bracketed(token.value)
        if token.value == "|":
            self.bars += 1
            tree = ("abs", self.sum())
            self.expect("|")
            self.bars -= 1
            return tree
        if token.kind == "cmd":
            return self.command(token.value)
        raise Unread(f"{token.value[:20]!r} is out of place")

    def group(self) -> Tree:
        bars, self.bars = self.bars, 0
        tree = self.items()
        if self.take("\\choose"):
            tree = ("fn", "\\binom", tree, self.items())
        self.expect("}")
        self.bars = bars
        return ("set", *tree[1:]) if tree[0] == "list" else tree

    def bracketed(self, opening: str) -> Tree:
        bars, self.bars = self.bars, 0
        empty = opening == "\\{" and self.take("\\}")
        tree = ("list",) if empty else self.items()
        if not empty and self.peek().value in ("|", ":") and opening == "\\{":
            raise Symbolic("a set builder")
        closing = "\\}" if empty else self.expect(*CLOSING[opening])
        self.bars = bars
        if opening == "\\{":
            return ("set", *(tree[1:] if tree[0] == "list" else (tree,)))
        if opening in ("\\lfloor", "\\lceil"):
            return ("fn", opening, tree)
        if tree[0] == "list":
            return (
                "tuple",
                "(" if opening == "\\langle" else opening,
                ")" if opening == "\\langle" else closing,
                *tree[1:],
            )
        if opening == "\\langle" or (opening == "(") != (closing == ")"):
            raise Unread("an interval with one end")
        return tree

    def matrix(self, name: str) -> Tree:
        if name not in MATRICES:
            raise Symbolic(f"the environment {name[:20]}") if name in ("cases", "vmatrix") else Unread(name[:20])
        if name == "array":
            self.expect("{")
            while not self.take("}"):
                if self.peek().kind == "op" and not self.peek().value:
                    raise Unread("an array without an end")
                self.at += 1
        rows, row = [], []
        while self.peek().kind != "end":
            row.append(self.item())
            if self.take("\\\\"):
                rows.append(tuple(row))
                row = []
            elif not self.take("&") and self.peek().kind != "end":
                raise Unread("a matrix without an end")
        self.at += 1
        rows += [tuple(row)] if row else []
        if len({len(row) for row in rows}) != 1:
            raise Unread("a matrix with rows of different lengths")
        return ("matrix", *rows)

    def command(self, name: str) -> Tree:
        if name == "\\frac":
            top = self.argument(one_digit=True)
            return ("div", top, self.argument(one_digit=True))
        if name == "\\sqrt":
            order: Tree = ("num", Fraction(2))
            if self.take("["):
                order = self.sum()
                self.expect("]")
            return ("root", self.argument(), order)
        if name == "\\binom":
            top = self.argument(one_digit=True)
            return ("fn", name, top, self.argument(one_digit=True))
        if name[1:] in FUNCTIONS:
            return self.function(name)
        if name in ("\\angle", "\\triangle", "\\overline", "\\bar", "\\measuredangle"):
            return ("sym", f"{name}{self.term()!r}")
        if name == "\\mathbb":
            return ("sym", f"\\mathbb{self.argument()[1]}")
        if name in ("\\emptyset", "\\infty"):
            return ("set",) if name == "\\emptyset" else ("sym", "\\infty")
        if name == "\\$":
            tree = self.factor()
            return ("unit", tree, "dollars")
        if name in SYMBOLIC:
            raise Symbolic(name)
        if name in ENDS or name in ("\\ldots", "\\begin", "\\end", "\\forall", "\\exists") or len(name) < 3:
            raise Unread(f"{name} is out of place")
        return ("sym", name)

    def function(self, name: str) -> Tree:
        """`\\sin^2 3x`, `\\log_2 8`, `\\sin(x)`: without brackets the argument runs to the next sign or function."""
        power, base = None, None
        while self.peek().value in ("^", "_"):
            if self.take("^"):
                power = self.exponent()
            elif self.take("_"):
                base = self.argument()
        if self.peek().value in ("(", "{"):
            tree = self.primary()
            if self.take("^"):
                power = ("deg",) if self.take("\\circ") else self.exponent()
                if power == ("deg",):
                    tree, power = ("deg", tree), None
        else:
            tree = self.signed()
            while self.starts_factor() and self.peek().value[1:] not in FUNCTIONS and self.peek().value != "(":
                tree = ("mul", tree, self.factor())
        if power == ("num", Fraction(-1)) and name[1:] in ("sin", "cos", "tan"):
            name, power = "\\arc" + name[1:], None
        items = tree[3:] if tree[0] == "tuple" else (tree,)
        result = ("fn", name, *items) if base is None else ("fn", "\\log", *items, base)
        return result if power is None else ("pow", result, power)
