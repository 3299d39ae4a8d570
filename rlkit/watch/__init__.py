"""What a person sees of a run: progress on the terminal, metrics in files, a report to read afterwards."""

from __future__ import annotations

from rlkit.watch.console import Console, step_line
from rlkit.watch.metrics import Metrics, read_metrics
from rlkit.watch.report import Evaluation, SampleText, read_evaluations, write_evaluation, write_report

__all__ = [
    "Console",
    "Evaluation",
    "Metrics",
    "SampleText",
    "read_evaluations",
    "read_metrics",
    "step_line",
    "write_evaluation",
    "write_report",
]
