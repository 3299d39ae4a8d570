"""The parts of an evaluation: each suite with its record and its numbers, also those that other commands asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import rewards
from rlkit.config import EvalRun
from rlkit.errors import UserError
from rlkit.evaluation.answering import keys_of, not_drawn, not_judged
from rlkit.evaluation.exams import Settings, model_of, reward_name
from rlkit.evaluation.measure import Measured, measure
from rlkit.evaluation.records import Asked, Record, read_settings
from rlkit.evaluation.suites import Suite, read_suites
from rlkit.watch.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One suite of an evaluation, answered and judged."""

    suite: Suite
    record: Record
    measured: Measured


def all_parts(cfg: EvalRun, parts: Sequence[Part], console: Console) -> list[Part]:
    """Adds the folder's other suites that the same model has answered and the same reward has judged, to the end.

    They come in the order in which they were first asked. What is left out is said, with why.
    """
    known = read_settings(cfg.output_dir)
    found = {part.suite.name: part for part in parts}
    model = model_of(parts[0].measured.settings)
    for name, settings in known["suites"].items():
        if name in found:
            continue
        try:
            if model_of(settings) != model:
                raise UserError("another model answered it")
            found[name] = _part(cfg, name, settings, known["asked"].get(name))
        except (UserError, rewards.RewardError) as error:
            console.warn(f"suite {name} of output_dir={cfg.output_dir} is not in these results: {error}")
    return [found[name] for name in known["suites"] if name in found]


def words_of_model(cfg: EvalRun, settings: Settings) -> str:
    """Returns the words of all suites in the folder that the model with these settings answers, as `suite` has them."""
    known = read_settings(cfg.output_dir)
    same = [name for name, other in known["suites"].items() if model_of(other) == model_of(settings)]
    return ",".join(known["asked"][name].suite for name in same if name in known["asked"])


def _part(cfg: EvalRun, name: str, settings: Settings, asked: Asked | None) -> Part:
    """Measures a suite by what its folder holds; raises UserError if something of it is missing or has changed."""
    if asked is None:
        raise UserError("its folder does not say what was asked; give its command again")
    [suite] = read_suites(replace(cfg, suite=asked.suite))
    if suite.digest != settings.get("problems"):
        raise UserError("its file has other problems now; put the file back as it was")
    record = Record(cfg.output_dir, name)
    keys = keys_of([row.id for row in suite.asked(asked.size)], asked.samples)
    owed = len(not_drawn(record, keys)) + len(not_judged(suite, record, keys))
    if owed:
        raise UserError(
            f"{owed:,} of its {len(keys):,} completions are not drawn, or not judged by {reward_name(suite.reward)}; "
            f"give the same command with suite={asked.suite} samples={asked.samples} size={asked.size}"
        )
    return Part(suite=suite, record=record, measured=measure(suite, record, keys, settings))
