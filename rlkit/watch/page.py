"""What every report is made of: frame, tiles, completions, settings; it needs no network and no JavaScript."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from rlkit.watch.console import visible
from rlkit.watch.evaluations import SampleText

_TEXT_LIMIT = 1500


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a whole page of HTML: the title as its heading, then the parts, and the style sheet inside.

    Half a character, which a text may hold and UTF-8 may not, is written out.
    """
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    heading = f"<h1>{escape(title)}</h1>"
    found = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body>\n{heading}{''.join(parts)}\n</body></html>\n"
    )
    return found.encode(errors="backslashreplace").decode()


def tile(label: str, value: str, note: str, *, main: bool = False) -> str:
    """Returns a number in large letters under its label; value and note are HTML."""
    kind = "tile main" if main else "tile"
    return f'<div class="{kind}"><span>{escape(label)}</span><b>{value}</b><span>{note}</span></div>'


def answer_box(name: str, sample: SampleText) -> str:
    """Returns a box with what a model wrote, and the verdict on it."""
    kind, word = ("answer correct", "right") if sample.correct else ("answer", "wrong")
    detail = sample.reason.removeprefix("correct").removeprefix("wrong").lstrip(": ")
    reason = f" ({clip(detail)})" if detail else ""
    return (
        f'<div class="{kind}"><header>{escape(name)}: <b>{word}</b>{reason}</header>'
        f"<pre>{clip(sample.completion) or '(empty)'}</pre></div>"
    )


def settings_fold(text: str) -> str:
    """Returns a configuration behind a fold; nothing for an empty one."""
    fold = f"<details><summary>config.yaml, resolved</summary><pre>{escape(text)}</pre></details>"
    return f"<h2>Configuration</h2>{fold}" if text else ""


def clip(text: str) -> str:
    """Makes a text of the model harmless, and bounds its length."""
    rest = len(text) - _TEXT_LIMIT
    return escape(visible(text[:_TEXT_LIMIT])) + (f" ... ({rest:,} more characters)" if rest > 0 else "")
