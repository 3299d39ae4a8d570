"""Which tokens end a completion: one answer for both engines, for both kinds of model, and for what an export keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlkit.errors import UserError
from rlkit.model.config import CONFIG, GENERATION_CONFIG

KEY = "eos_token_id"


def end_tokens(folder: Path) -> frozenset[int]:
    """Returns the ids that config.json and generation_config.json name together; either may hold one id or a list.

    Both files count, because published models spread the ids over them: a base model's end of text stands in
    config.json, and the end of a turn, which instruction tuning added, in generation_config.json alone. Raises
    UserError if nothing is named, since no completion would end then, and for anything that is not an id.
    """
    ends: set[int] = set()
    for file in (folder / CONFIG, folder / GENERATION_CONFIG):
        if file.is_file():
            ends |= _named(file, _read(file))
    if not ends:
        raise UserError(f"{folder / CONFIG}: {KEY} is missing, so no completion would end; set it")
    return frozenset(ends)


def _read(file: Path) -> Any:
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{file}: there should be keys and values; copy the file again")
    # A model that also sees images keeps what concerns its language in a config of its own.
    return raw.get(KEY, (raw.get("text_config") or {}).get(KEY))


def _named(file: Path, given: Any) -> set[int]:
    ids = [] if given is None else given if isinstance(given, list) else [given]
    for token in ids:
        if type(token) is not int or token < 0:
            raise UserError(f"{file}: {KEY}={given!r}: give a token id, or a list of token ids")
    return set(ids)
