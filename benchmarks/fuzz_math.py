r"""Random and mutated texts against the math reward: none may raise, and none may hide a gold that can be read.

    python -m benchmarks.fuzz_math --texts 100000

Half of the texts are made of pieces of LaTeX, numbers, words and signs of several scripts, half are golds and answers
of the tests' cases with pieces cut out, doubled, swapped or put in. Each is judged once as an answer, beside a gold
that is readable for sure, and once as a gold beside a usual answer. If the gold alone can be read and worked out, a
verdict of None is a fault, because a policy would learn to hide behind the answer that brings it about. Sums and
integrals as a gold are the exception: whether computer algebra reads them, only computer algebra knows.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from rewards import Reward, Sample
from rewards.math import MathVerifier, gold_text
from rewards.math.decide import is_readable
from rewards.math.read import read

CASES = Path(__file__).resolve().parents[1] / "tests" / "rewards" / "math" / "cases.jsonl"
GOLDS = (
    "42", "0.5", r"\frac{1}{2}", r"\sqrt{2}", r"20\%", "x^2+1", "y=2x+1", "x>5", "(1,2)", "[1,4)", r"\{1,2\}", "1,2",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "3:4", r"5\text{ cm}", r"\text{(B)}", "Friday", "1011_2", "1+2i",
    r"(-\infty,1)\cup(3,\infty)", r"\sum_{k=1}^{10}k", r"12\text{ chickens and }18\text{ rabbits}", "f(x)=x^2", "24元",
    r"\{x \mid x>2\}", r"\begin{cases} x=1\\y=2\end{cases}", r"3\pmod{7}", r"\pm 2", "2^{100}", r"30^\circ",
)  # fmt: skip
PIECES = [
    *"0123456789", *"+-*/^_=<>.,;:!|%$()[]{}'& ~@#", *"xyzabnkfgePVCi", "10", "2.5", "1,000", "{}", "^{2}", "_{1}",
    "^{-1}", "\\", "\\\\", r"\frac", r"\frac{1}{2}", r"\dfrac", r"\sqrt", r"\sqrt[3]{", r"\pi", r"\infty", r"\pm",
    r"\cdot", r"\times", r"\div", r"\le", r"\ge", r"\ne", r"\in", r"\cup", r"\cap", r"\setminus", r"\mid", r"\{",
    r"\}", r"\left(", r"\right)", r"\left\{", r"\right.", r"\text{", r"\text{ and }", r"\text{ or }", r"\text{ cm}",
    r"\text{if }", r"\mathbb", r"\mathbb{R}", r"\mathbb{Z}", r"\mathrm{", r"\overline", r"\overline{", r"\int_0^1 ",
    r"\sum_{k=1}^{", r"\lim_{x\to0}", r"\prod", r"\log", r"\log_", r"\ln", r"\sin", r"\arcsin", r"\max", r"\gcd(",
    r"\binom{", r"\pmod", r"\begin{pmatrix}", r"\end{pmatrix}", r"\begin{cases}", r"\end{cases}", r"\end{array}",
    r"\begin{array}{c}", r"\lfloor", r"\rfloor", r"\lor", r"\circ", r"^\circ", r"\angle", r"\vec{", r"\color{red}",
    r"\large ", r"\boxed{", r"\emptyset", r"\ldots", r"\%", r"\$", r"\approx", "e^{1000}", "1000!", "9^{9^9}",
    "10^{309}", "1e999", "th", "or", "and", "cm", "m/s", "not", "yes", "\u00b2", "\u207b\u00b9", "\u2081\u2082",
    "\u00bd", "\u221a",
    "\u03c0", "\u221e", "\u2264", "\u00d7", "\u00b0", "\u5143", "\u6216", "\u3002", "\uff08", "\uff1d", "\u65e0\u89e3",
    "\u20ac", "\u00a5", "\u00e9", "\u0434", "\u0664", "\u200b", "\x00", "\n", "\U0001f600",
]  # fmt: skip
FRAMES = ("{}", "({})", r"\text{{{}}}", r"\{{{}\}}", "-{}", "{},{}", "{}^{{{}}}")


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Random texts and mutated ones in turn, the same for the same seed."""
    rng = random.Random(seed)
    known = _known_texts()
    for at in range(count):
        if at % 2:
            yield "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 9)))
        else:
            yield _mutated(rng.choice(known), rng, known)


def _known_texts() -> list[str]:
    found = []
    for case in map(json.loads, CASES.read_text().splitlines()):
        found += [text for text in (case["gold"], case.get("answer")) if isinstance(text, str) and len(text) < 200]
    return found


def _mutated(text: str, rng: random.Random, known: list[str]) -> str:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        start, end = sorted(rng.randint(0, len(text)) for _ in range(2))
        end = min(end, start + rng.randint(0, 8))
        change = rng.randrange(6)
        if change == 0:
            text = text[:start] + text[end:]
        elif change == 1:
            text = text[:start] + rng.choice(PIECES) + text[start:]
        elif change == 2:
            text = text[:end] + text[start:end] * rng.randint(1, 3) + text[end:]
        elif change == 3:
            text = text[:start] + rng.choice(PIECES) + text[end:]
        elif change == 4:
            text = text[:start] + rng.choice(known)[:40] + text[end:]
        else:
            text = rng.choice(["{}", "({})", r"\text{{{}}}", r"\{{{}\}}", "-{}", "{},{}", "{}^{{{}}}"]).format(
                text, text
            )
    return text[:1_200]


def faults(
    count: int, verifier: MathVerifier, seed: int = 0, report: Callable[[int, Counter[str]], None] | None = None
) -> list[str]:
    """Returns what went wrong with `count` texts, in words; an empty list is what must come."""
    rng, reasons, found = random.Random(seed + 1), Counter[str](), []
    for at, text in enumerate(texts(count, seed), start=1):
        gold, answer = rng.choice(GOLDS), rng.choice(GOLDS)
        try:
            beside, other = _judged(verifier, gold, text), _judged(verifier, text, answer)
        except Exception as error:
            found.append(f"{text!r} raises {type(error).__name__}: {error}")
            continue
        reasons.update((beside.reason, other.reason))
        if beside.value is None:
            found.append(f"the answer {text!r} hides from the gold {gold!r}: {beside.reason}")
        if other.value is None and _is_readable(text):
            found.append(f"the gold {text!r} is readable, but {answer!r} gets no verdict: {other.reason}")
        if report and at % 1_000 == 0:
            report(at, reasons)
    return found


def _judged(verifier: MathVerifier, gold: str, answer: str) -> Reward:
    # The text may hold braces that do not balance, so that no box could be closed around it.
    [reward] = verifier([Sample("", f"<answer>{answer}</answer>", meta={"answer": gold})])
    return reward


def _is_readable(text: str) -> bool:
    try:
        read(gold_text(f"<answer>{text}</answer>") or "", is_gold=True)
    except ValueError:
        return False
    return is_readable(text)


def main() -> None:
    """Judge the texts, print how often each reason came, and end with an error if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds for one answer")
    options = parser.parse_args()
    verifier, start = MathVerifier(timeout=options.timeout, workers=1), time.monotonic()

    def report(at: int, reasons: Counter[str]) -> None:
        print(f"{at} texts, {time.monotonic() - start:.0f} s: {dict(reasons.most_common())}", flush=True)

    try:
        found = faults(options.texts, verifier, options.seed, report)
    finally:
        verifier.close()
    print(f"{options.texts} texts, {time.monotonic() - start:.0f} s, {len(found)} faults", *found[:100], sep="\n")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
