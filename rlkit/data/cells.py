"""Cells of a dataset as text, by their type: what a question, a gold answer or a solution is made of.

A cell is missing when it holds nothing (None) or no number (NaN, which is what tables put where nothing was). Nothing
is made of a missing cell, and nothing is made of a type that has no one text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from string import Formatter
from typing import Any
from uuid import UUID

import numpy as np


def is_missing(value: object) -> bool:
    """Returns whether a cell holds nothing: None, a NaN of any kind, or what stands for it in a column of dates."""
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return value is None or type(value).__name__ in ("NaTType", "NAType")  # pandas', which need not be installed


def cell_text(value: object) -> str:
    """Returns the text of a cell.

    Text stays as it is. Numbers are written as in JSON and keep their digits (Decimal("4.50") is 4.50), truth values
    are true and false, bytes are read as UTF-8, dates and times are written as in ISO 8601. A list of content parts,
    `[{"type": "text", "text": ...}]`, is the text of its parts; any other list, and a mapping, is JSON.

    Raises TypeError for a missing cell and for any other type, saying what it holds.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.floating) and math.isfinite(value):
        return str(value)  # not through float, which would show what a float32 cannot hold: 0.10000000149 for 0.1
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64):
        return cell_text(value.item())
    if (scalar := _scalar_text(value)) is not None:
        return scalar
    if isinstance(value, np.ndarray):
        return cell_text(value.tolist())
    if _are_parts(value):
        parts: Any = value
        return "".join(cell_text(part["text"]) for part in parts)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(plain(value), ensure_ascii=False)
    raise TypeError("no value" if is_missing(value) else f"a {type(value).__name__}, which has no one text")


def is_text(value: object) -> bool:
    """Returns whether a cell holds words rather than a number, a date or a table: text, bytes, or content parts."""
    return isinstance(value, str | bytes | bytearray | memoryview) or _are_parts(value)


def _scalar_text(value: object) -> str | None:
    """Returns the text of a single value; None where it is missing, or made of several."""
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise TypeError(f"{value}, which is not a number to write down")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError as error:
            raise TypeError(f"bytes that are not text in UTF-8 ({error})") from error
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, np.datetime64 | UUID) else None


def _are_parts(value: object) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(part, Mapping) and part.get("type") == "text" and "text" in part for part in value)


def plain(value: Any) -> Any:
    """Returns the same value in the types that JSON has; a cell that is missing inside another one is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64):
        return plain(value.item())
    if is_missing(value):
        return None
    return value if isinstance(value, bool | int) or _is_finite(value) else cell_text(value)


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


class Template(Formatter):
    """A text with columns of a row between braces: "{text} Tests: {test_list}", "{choices[0]}", "{price:.2f}".

    A list gives one line per entry. Fields are looked up in the cells as they are, not in their text, so that
    `{choices[0]}` is the first choice.
    """

    def fill(self, template: str, record: Mapping[str, Any]) -> str:
        """Writes the row's cells into the template.

        Raises KeyError for a column without a value, and ValueError, IndexError or TypeError for what cannot be filled.
        """
        return self.vformat(template, (), {name: cell for name, cell in record.items() if not is_missing(cell)})

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Finds a column by its name; numbers, and braces with nothing between them, name none."""
        if not isinstance(key, str) or not key:
            raise ValueError("there is no column name between the braces")
        return kwargs[key]

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Finds a column, or with `[...]` an entry of one; texts have no entries, and nothing has attributes."""
        name, *rest = field_name.replace("]", "").split("[")
        if "." in name and name not in kwargs:
            raise ValueError(f"{field_name!r} asks for an attribute; an entry of a column is written column[name]")
        value = self.get_value(int(name) if name.isdecimal() else name, args, kwargs)
        for entry in rest:
            if isinstance(value, str | bytes):
                raise TypeError(f"{field_name!r} asks for an entry, but the cell is text")
            if isinstance(value, Mapping) and entry not in value:
                known = ", ".join(map(str, value))
                raise ValueError(f"{field_name!r} asks for an entry {entry!r}, but there are {known}")
            value = value[entry if isinstance(value, Mapping) else int(entry)]
        return value, name

    def format_field(self, value: Any, format_spec: str) -> str:
        """Writes a cell as text, or, where the template says how (`:.2f`), as Python formats it."""
        if format_spec:
            return format(value, format_spec)
        if isinstance(value, list | tuple | np.ndarray) and not _are_parts(value):
            return "\n".join(map(cell_text, value))
        return cell_text(value)
