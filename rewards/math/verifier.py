r"""Rewards an answer that equals the gold answer as mathematics, however either of them is written.

    rewards.load("math")([Sample("1/2 + 1/2", r"\boxed{1}", meta={"answer": "1"})])

Words, integers, fractions, decimals, lists, intervals and polynomials are decided exactly in this process; what takes
more goes to a worker process that is killed when its time is up. What is not covered: proofs, whether a fraction is
reduced or a product factored, answers in words ("forty-two").
"""

from __future__ import annotations

import functools
import importlib.util
import math
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

from rewards.base import Reward, RewardError, Sample, thought_is_open
from rewards.extract import Extraction, extract, last_box, last_boxed
from rewards.math.compare import Comparison, Percent, Units
from rewards.math.decide import Outcome, decide, is_readable
from rewards.math.judge import Judge
from rewards.math.pool import Pool
from rewards.math.value import FLOATS

LOGGED = 200
"""So many characters of an answer go into the logs."""
_UNSURE = ("undecided", "symbolic")
_MASKED = ("gold_unparsable", "worker_lost")


class MathVerifier:
    """Gives 1 if the completion's answer equals `meta["answer"]`, else 0; None only if nothing can be said.

    Reasons: correct, wrong, no_answer, unparsable, guard (too long, deep or large), timeout; without a value
    gold_unparsable and worker_lost. `logs` hold the answer, where it stood, and the gold.
    """

    independent = True

    def __init__(
        self,
        *,
        extraction: Extraction = "strict",
        percent: Percent = "either",
        units: Units = "optional",
        timeout: float = 5.0,
        workers: int = 2,
    ) -> None:
        """Checks the settings; `timeout` is in seconds per answer. Raises RewardError."""
        for package in ("mpmath", "math_verify"):
            if importlib.util.find_spec(package) is None:
                raise RewardError(
                    f"reward 'math' needs the package {package}, which is missing: pip install math-verify"
                )
        choices = {"extraction": (extraction, Extraction), "percent": (percent, Percent), "units": (units, Units)}
        for key, (value, allowed) in choices.items():
            if value not in get_args(allowed):
                raise RewardError(f"reward 'math': {key}={value!r}; it is one of {', '.join(get_args(allowed))}")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 3600:
            raise RewardError(f"reward 'math': timeout={timeout!r}; give seconds above 0, at most 3600")
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 256:
            raise RewardError(f"reward 'math': workers={workers!r}; give a number of processes from 1 to 256")
        self.extraction: Extraction = extraction
        self.timeout = self.longest_s = timeout
        self.comparison = Comparison(judge=Judge(arithmetic=FLOATS), percent=percent, units=units)
        self.pool = Pool(workers)
        weakref.finalize(self, self.pool.close)  # at the latest when the interpreter exits

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges every sample, in order; raises RewardError if a row has no column `answer`."""
        self.check_samples(samples)
        found = [extract(s.completion, thought_is_open(s.prompt), self.extraction) for s in samples]
        golds = [gold_text(sample.meta["answer"]) for sample in samples]
        texts = [answer.text if answer else "" for answer in found]
        outcomes = self._outcomes({(gold, text) for gold, text in zip(golds, texts, strict=True) if gold and text})
        results = []
        for gold, text, answer in zip(golds, texts, found, strict=True):
            reason = outcomes.get((gold, text), "no_answer") if gold else "gold_unparsable"
            logs = {"answer": text[:LOGGED], "place": answer.place if answer else "", "gold": (gold or "")[:LOGGED]}
            results.append(_reward(reason, logs))
        return results

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raises RewardError if a row has no column `answer`."""
        for index, sample in enumerate(samples):
            if "answer" not in sample.meta:
                raise RewardError(
                    f"reward 'math' needs the column 'answer', which sample {index} does not have (its columns: "
                    f"{', '.join(map(str, sample.meta)) or 'none'}); rename the column that holds the gold answer"
                )

    def judge(self, gold: str, answer: str) -> Outcome:
        """Returns the verdict on the bare text of an answer; safe from any thread."""
        return self._outcomes({(gold, answer)})[gold, answer]

    def close(self) -> None:
        """Ends the worker processes; the next answer that needs one starts them again."""
        self.pool.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the settings; the copy starts workers of its own."""
        settings = {
            "extraction": self.extraction,
            "percent": self.comparison.percent,
            "units": self.comparison.units,
            "timeout": self.timeout,
            "workers": self.pool.num_workers,
        }
        return functools.partial(MathVerifier, **settings), ()

    def _outcomes(self, pairs: set[tuple[str, str]]) -> dict[tuple[str, str], Outcome]:
        outcomes: dict[tuple[str, str], Outcome] = {}
        for pair in pairs:
            outcomes[pair] = decide(*pair, self.comparison)
        unsure: list[tuple[tuple[str, str], Outcome]] = [
            (pair, outcome) for pair, outcome in outcomes.items() if outcome in _UNSURE
        ]
        if len(unsure) > 1:
            with ThreadPoolExecutor(min(self.pool.num_workers, len(unsure))) as threads:
                outcomes |= threads.map(self._ask, unsure)
        elif unsure:
            outcomes |= [self._ask(unsure[0])]
        return outcomes

    def _ask(self, unsure: tuple[tuple[str, str], Outcome]) -> tuple[tuple[str, str], Outcome]:
        (gold, answer), outcome = unsure
        request = {"gold": gold, "answer": answer}
        request |= {"percent": self.comparison.percent, "units": self.comparison.units}
        verdict = self.pool.ask(request, self.timeout, algebra=outcome == "symbolic")
        if verdict == "worker_lost":
            # Two workers died over this answer. If another can work out the gold alone, the answer killed them.
            alone = self.pool.ask(request | {"answer": gold}, self.timeout)
            verdict = "worker_lost" if alone == "worker_lost" else "guard" if is_readable(gold) else "gold_unparsable"
        return (gold, answer), verdict


def verify(gold: Any, answer: str, *, percent: Percent = "either", units: Units = "optional") -> Reward:
    r"""Judges one answer, such as `\frac12` or `$x = 0.5$`, without a completion around it.

    For many answers keep one MathVerifier: this function starts and ends a worker whenever it needs one.
    """
    verifier = MathVerifier(percent=percent, units=units, workers=1)
    try:
        text = gold_text(gold)
        box = last_box(answer)
        bare = answer[slice(*box)] if box else answer
        return _reward("gold_unparsable" if text is None else verifier.judge(text, bare), {"answer": bare[:LOGGED]})
    finally:
        verifier.close()


def gold_text(gold: Any) -> str | None:
    r"""Returns the answer in a dataset's column: a number, LaTeX, or a solution with a last `\boxed{...}` or `#### 42`.

    None if there is none: an empty text, NaN, or something that is neither a text nor a number.
    """
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)):
        return None
    if isinstance(gold, float):
        return f"{gold:.15g}" if math.isfinite(gold) else None
    if isinstance(gold, int):
        return str(gold)
    if (boxed := last_boxed(gold)) is not None:
        return boxed or None
    if "####" in gold or "<answer>" in gold:
        found = extract(gold)
        return found.text or None if found else None
    return gold.strip() or None


def _reward(outcome: str, logs: dict[str, Any]) -> Reward:
    return Reward(None if outcome in _MASKED else float(outcome == "correct"), outcome, logs=logs)
