"""The stages of a pipeline as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.multistage.ledger import StageRow

HEAD = ("stage", "recipe", "accuracy", "", "rows", "tokens", "time")


def table(rows: Sequence[StageRow]) -> str:
    """Lays out one line for each stage: accuracy before and after, rows kept, tokens, time."""
    cells = [HEAD, *(cells_of(row) for row in rows)]
    total = StageRow(
        stage="all",
        recipe="",
        words=(),
        before=None,
        after=None,
        rows=None,
        tokens=sum(row.tokens for row in rows),
        seconds=sum(row.seconds for row in rows),
    )
    cells.append(cells_of(total))
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    left = 2  # names stand at the left, numbers at the right
    lines = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def cells_of(row: StageRow) -> tuple[str, ...]:
    """Writes the numbers of a stage as people read them; "" where it has none."""
    before = "" if row.before is None else f"{row.before:.1%}"
    after = "" if row.after is None else f"{'-> ' if before else ''}{row.after:.1%}"
    kept = "" if row.rows is None else f"{row.rows:,}"
    minutes, seconds = divmod(round(row.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    time = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return row.stage, row.recipe, before, after, kept, f"{row.tokens:,}", time
