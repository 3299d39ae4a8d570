"""Reads arithmetic: numbers, names, sums, products, powers, fractions, roots and functions.

`parse.py` adds what answers are made of beyond one value, and says what the trees look like.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rewards.math.notation import CLOSERS, CLOSING, ENDS, RELATIONS, SETS, SYMBOLIC
from rewards.math.numerals import base_of, based, repeating
from rewards.math.text import Explodes, Unread
from rewards.math.tokens import FUNCTIONS, Token

Tree = tuple[Any, ...]
MAX_DEPTH = 40
MAX_FACTORS = 100
"""A product may have so many factors; its tree is as deep."""


class Symbolic(Unread):
    """Mathematics that only a computer algebra system works out: integrals, sums, limits, products of matrices."""


def integer(tree: Tree) -> int | None:
    """Returns the whole number that a tree is, or None."""
    return int(tree[1]) if tree[0] == "num" and tree[1].denominator == 1 else None


def called(tree: Tree) -> str:
    """Returns what a tree is called: the name of a symbol, and the text of any other tree."""
    # The text of a symbol's tree would be quoted, and again in the next name: it would double with every prime.
    return tree[1] if tree[0] == "sym" else repr(tree)


class Expressions:
    """Recursive descent over the tokens; each method reads one kind of thing and stops behind it.

    Example: `Expressions(tokenize("2x+1")).sum()`
    """

    def __init__(self, tokens: list[Token]) -> None:
        """Starts at the first token."""
        # `bars` counts open absolute values: inside one, the next | closes it and begins no factor.
        self.tokens, self.at, self.depth, self.bars = tokens, 0, 0, 0

    def items(self) -> Tree:
        """Reads everything up to the next closing bracket; a subclass also reads lists and relations."""
        return self.sum()

    def environment(self, name: str) -> Tree:
        """Returns what stands between \\begin{name} and \\end{name}; a subclass reads matrices."""
        raise Unread(name[:20])

    def bracketed(self, opening: str) -> Tree:
        """Returns what stands in brackets, behind the opening one; a subclass reads tuples and sets."""
        tree = self.items()
        self.expect(*CLOSING[opening])
        return tree

    def peek(self, ahead: int = 0) -> Token:
        """Returns the next token, or one further on; an empty operator behind the last."""
        at = self.at + ahead
        return self.tokens[at] if 0 <= at < len(self.tokens) else Token("op", "")

    def take(self, *values: str) -> bool:
        """Steps over the next token if it is one of these operators or commands."""
        token = self.peek()
        if token.kind in ("op", "cmd") and token.value in values:
            self.at += 1
            return True
        return False

    def expect(self, *values: str) -> str:
        """Steps over one of these; raises Unread if something else comes."""
        token = self.peek()
        if not self.take(*values):
            raise Unread(f"{values[0]!r} is missing")
        return token.value

    def behind(self, at: int) -> int:
        """Returns the index behind the bracket that closes the one at index `at`; raises Unread without one."""
        depth = 0
        for index in range(at, len(self.tokens)):
            token = self.tokens[index]
            if token.kind in ("op", "cmd"):
                depth += (token.value in CLOSING or token.value == "{") - (token.value in CLOSERS)
            if depth == 0:
                return index + 1
        raise Unread("a bracket without an end")

    def written(self, start: int, end: int) -> str:
        """Returns the tokens from `start` to `end` as one text, which serves as a name."""
        return "".join(token.value for token in self.tokens[start:end])

    def sum(self) -> Tree:
        """Reads terms with signs between them."""
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
        """Returns a term behind a sign; a negative number is a number."""
        if kind == "neg" and term[0] in ("num", "dec"):
            return (term[0], -term[1])
        return (kind, term)

    def term(self) -> Tree:
        """Reads factors, with or without signs of multiplication between them."""
        tree = self.signed()
        for _ in range(MAX_FACTORS):
            if self.take("*", "\\cdot", "\\times"):
                tree = ("mul", tree, self.signed())
            elif self.take("/", "\\div"):
                tree = ("div", tree, self.signed())
            elif self.starts_factor():
                # 41 42 is not a product, and neither is 4{2}; but 2 1/2 is a mixed number.
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
        """Returns whether a fraction such as 1/2 follows a whole number."""
        return integer(tree) is not None and self.peek(1).value == "/" and self.peek(2).kind == "num"

    def joined(self, tree: Tree, factor: Tree, last: Token) -> Tree:
        """Returns the product of two factors, or a mixed number: `2\\frac{1}{2}` and `2 1/2` are 5/2."""
        whole = integer(tree)
        if whole is not None and last.kind == "num":
            if factor[0] in ("pct", "deg"):
                return (factor[0], self.joined(tree, factor[1], last))
            if factor[0] == "num" and self.take("/"):
                factor = ("div", factor, self.factor())
            if factor[0] == "div":
                top, bottom = integer(factor[1]), integer(factor[2])
                if top is not None and bottom is not None and 0 <= top < bottom:
                    return ("num", whole + Fraction(top, bottom))
        return ("mul", tree, factor)

    def signed(self) -> Tree:
        """Returns a factor, perhaps behind signs: 2 * -3."""
        is_negative = False
        while (sign := self.peek().value) in ("+", "-") and self.take(sign):
            is_negative ^= sign == "-"
        return self.negated("neg", self.factor()) if is_negative else self.factor()

    def starts_factor(self) -> bool:
        """Returns whether the next token begins a factor, so that a product goes on without a sign."""
        token = self.peek()
        if token.kind in ("op", "cmd"):
            return bool(token.value) and token.value not in ENDS and not (token.value == "|" and self.bars)
        return token.kind in ("num", "let", "repeat") or (token.kind == "begin")

    def factor(self) -> Tree:
        """Returns a value with its exponents, subscripts, primes, factorials and signs of per cent or degrees."""
        tree = self.primary()
        while True:
            token = self.peek()
            if token.kind not in ("op", "cmd"):
                return tree
            if self.take("^"):
                tree = ("deg", tree) if self.take("\\circ") else ("pow", tree, self.exponent())
            elif self.take("_"):
                tree = self.subscripted(tree)
            elif self.take("!"):
                if self.take("!"):
                    raise Unread("a double factorial")
                tree = ("fact", tree)
            elif self.take("%", "\\%"):
                tree = ("pct", tree)
            elif self.take("'"):
                tree = ("sym", f"{called(tree)}'")
            elif self.take("\\circ"):
                tree = ("deg", tree)
            else:
                return tree

    def subscripted(self, tree: Tree) -> Tree:
        """Returns a name with a subscript, or a numeral with its base: `x_{12}`, `(101)_2`."""
        before, start = self.peek(-2), self.at
        self.at = self.behind(start) if self.peek().value == "{" else start + 1
        subscript = self.written(start, self.at).strip("{}()")
        if tree[0] in ("num", "dec"):  # 1011_2 is a numeral, x_2 a name
            if (base := base_of(subscript)) is None:
                raise Unread("a number with a subscript that is no base")
            return based(before.value if before.kind == "num" else str(tree[1]), base)
        if tree[0] not in ("sym", "app") or not subscript:
            raise Unread("a subscript of something that is no name")
        return ("sym", f"{called(tree)}_{subscript}")

    def exponent(self) -> Tree:
        """Returns what stands behind ^; 2^3^2 is 2^(3^2)."""
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
        """Returns what a LaTeX command takes: a group, or one token.

        Of a number only its first digit if `one_digit`.
        """
        token = self.peek()
        if one_digit and token.kind == "num" and len(token.value) > 1 and token.value.isdigit():
            self.tokens[self.at] = Token("num", token.value[1:])
            return ("num", Fraction(token.value[0]))
        return self.primary()

    def primary(self) -> Tree:
        """Reads one number, name, group, bracket, absolute value or command."""
        token = self.peek()
        self.at += 1
        if token.kind == "num":
            return ("num" if token.value.isdigit() or len(token.value) == 1 else "dec", Fraction(token.value))
        if token.kind == "let":
            return self.name(token.value)
        if token.kind == "repeat":
            return ("num", repeating(token.value))
        if token.kind in ("text", "unit"):
            return ("text", token.value.casefold())
        if token.kind == "begin":
            return self.environment(token.value)
        if token.value == "{" or (token.value in CLOSING and token.value):
            return self.bracketed(token.value)
        if token.value == "|":
            self.bars += 1
            tree = ("abs", self.items() if self.holds_sets() else self.sum())
            self.expect("|")
            self.bars -= 1
            return tree
        if token.kind == "cmd":
            return self.command(token.value)
        raise Unread(f"{token.value[:20]!r} is out of place")

    def holds_sets(self) -> bool:
        """Returns whether the bars that were just opened count a set: `|A \\cap B|`."""
        inside = []
        for token in self.tokens[self.at :]:
            if token.value == "|":
                break
            inside.append(token.value)
        return not SETS.keys().isdisjoint(inside)

    def name(self, name: str) -> Tree:
        """Returns a letter, or a function that is applied: `f(x)`, `f''(0)`, `P(X = 2)`."""
        at, primes = self.at, ""
        while self.take("'"):
            primes += "'"
        if name in "fgh" and self.written(self.at, self.at + 5) == "^{-1}":
            self.at += 5
            primes = "^{-1}"
        # f(x) is a function of x, but x(x + 1) a product; P(X = 2) can be no product, because X = 2 is no factor.
        if self.peek().value == "(":
            end = self.behind(self.at)
            if self.is_condition(self.at + 1, end - 1):
                tree = ("sym", f"{name}{primes}{self.written(self.at, end)}")
                self.at = end
                return tree
            if name in "fgh" or primes:
                return ("app", name + primes, self.primary())
        self.at = at
        return ("sym", name)

    def is_condition(self, start: int, end: int) -> bool:
        """Returns whether these tokens in brackets are no factor: an event such as X = 2, A | B or A \\cap B."""
        values = [token.value for token in self.tokens[start:end] if token.kind in ("op", "cmd")]
        return any(value in RELATIONS or value in SETS or value == "\\mid" for value in values) or (
            values.count("|") % 2 == 1
        )

    def command(self, name: str) -> Tree:
        """Reads what a LaTeX command takes, behind the command."""
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
        if (
            name == "\\overline"
            and self.peek(1).kind == "num"
            and (self.peek(2).value, self.peek(3).value) == ("}", "_")
        ):
            return self.argument()  # the digits of a numeral with a base
        if name in ("\\angle", "\\triangle", "\\overline", "\\bar", "\\measuredangle"):
            return ("sym", f"{name}{called(self.term())}")
        if name == "\\mathbb":
            letter = self.written(self.at, self.at + 3 if self.peek().value == "{" else self.at + 1).strip("{}")
            if not re.fullmatch("[A-Z]", letter):
                raise Unread("a double letter that is none")
            self.at += 3 if self.peek().value == "{" else 1
            return self.name(f"\\mathbb{letter}")
        if name in ("\\emptyset", "\\infty"):
            return ("set",) if name == "\\emptyset" else ("sym", "\\infty")
        if name == "\\$":
            tree = self.factor()
            return ("unit", tree, "dollars")
        if name in SYMBOLIC:
            raise Symbolic(name)
        if name in ENDS or name in ("\\ldots", "\\begin", "\\end", "\\forall", "\\exists") or len(name) < 3:
            raise Unread(f"{name} is out of place")
        return self.name(name)

    def function(self, name: str) -> Tree:
        """Reads `\\sin^2 3x`, `\\log_2 8` or `\\sin(x)`; without brackets the argument ends at the next sign."""
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
        if base is not None and name != "\\log":
            raise Unread(f"{name} with a subscript")
        if power == ("num", Fraction(-1)) and name[1:] in ("sin", "cos", "tan"):
            name, power = "\\arc" + name[1:], None
        items = tree[3:] if tree[0] == "tuple" else (tree,)
        result = ("fn", name, *items) if base is None else ("fn", "\\log", *items, base)
        return result if power is None else ("pow", result, power)
