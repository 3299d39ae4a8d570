"""A plan as plain values for programs: every field and every property, in bytes, seconds and dollars."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any


def as_values(found: object) -> Any:
    """Returns dictionaries, lists and numbers: what `json.dumps` takes."""
    if is_dataclass(found) and not isinstance(found, type):
        derived = [name for name, value in vars(type(found)).items() if isinstance(value, property)]
        names = [*(field.name for field in fields(found)), *derived]
        return {name: as_values(getattr(found, name)) for name in names}
    if isinstance(found, tuple | list):
        return [as_values(item) for item in found]
    return found
