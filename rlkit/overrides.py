r"""The words of a command line: `key=value`, where every value is read by the same rules wherever it stands.

A value is `null`, `true` or `false`, a number, quoted text, a list `[a, b]`, a group `{a: 1, b: [2, 3]}`, or else text
as it is: `=`, brackets, commas, quotes and umlauts inside text mean nothing. What stands inside a list or a group is
read by these rules too, so that `reward.kwargs={a: 1e-6}` and `reward.kwargs.a=1e-6` set the same number.

Hydra has a grammar of its own for this, which we do not use: it refuses `~/x`, `a=b`, brackets and umlauts.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

from rlkit.errors import UserError

WORDS = {"null": None, "true": True, "false": False}
WHOLE = re.compile(r"[-+]?(0|[1-9]\d*(_\d+)*)")
NUMBER = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=e))(e[-+]?\d+)?|[-+]?\.?inf|\.?nan", re.IGNORECASE)
MAX_DIGITS = 4000
"""Python reads no whole number of more than 4,300 digits; such a word stays text."""


class ConfigError(UserError):
    """A configuration that cannot work; the message names the key, the value and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One word of the command line, split but not yet read.

    Example: `algo.steps=3` is `Override(key="algo.steps", text="3", remove=False)`.
    """

    key: str
    text: str
    remove: bool
    """Written as `~key`: take the key away."""


def read_override(word: str) -> Override:
    """Splits a word at its first `=`; Hydra's signs `+` and `++` before a key are read and mean nothing here."""
    key, separator, text = word.partition("=")
    remove = key.startswith("~")
    key = key.lstrip("+~").strip()
    if not key or (not separator and not remove):
        raise ConfigError(f"{word!r} is not an override; write key=value")
    if re.match(r"hydra\b", key):
        raise ConfigError(
            f"{word}: Hydra's own settings do nothing here; remove it (output_dir=FOLDER says where a run is written)"
        )
    return Override(key=key, text=text, remove=remove)


def read_value(key: str, text: str) -> Any:
    """Returns the value that a text stands for.

    Raises:
        ConfigError: for what begins like a list or a group and is not one.
    """
    text = text.strip()
    if text[:1] in ("{", "["):
        try:
            return _read(text)
        except yaml.YAMLError as error:
            problem = str(error).splitlines()[0]
            raise ConfigError(
                f"{key}={text} begins like a {'group' if text[0] == '{' else 'list'}, but cannot be read as one "
                f"({problem}); write {{a: 1, b: [2, 3]}}, and text with such signs in quotes: {key}='\"TEXT\"'"
            ) from error
    unquoted = read_text(text)
    return read_word(text) if unquoted == text else unquoted


def read_text(text: str) -> str:
    """Returns text without the quotes around it, if it has any: `"a b"` and `a b` are the same."""
    text = text.strip()
    if len(text) < 2 or text[0] not in "\"'" or text[-1] != text[0]:
        return text
    try:
        found = _read(text)
    except yaml.YAMLError:  # 'a' or 'b': quotes inside a text, not around it
        return text
    return found if isinstance(found, str) else text


def read_word(text: str) -> Any:
    """Returns null, a truth value or a number for a word that is one, and every other word as it is."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if len(text) > MAX_DIGITS:
        return text
    if WHOLE.fullmatch(text):
        return int(text)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if NUMBER.fullmatch(text) else text


class _Loader(yaml.SafeLoader):
    """YAML's flow style, with our words in place of its own: YAML 1.1 takes 1e-6 for text and 1:30 for 90."""

    def scalar(self, node: yaml.ScalarNode) -> Any:
        """Reads a plain word by our rules; `style` holds the quotes around a quoted one, which is text."""
        return node.value if node.style else read_word(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Reads `{a:1}` like `{a: 1}`: to YAML the first is a key "a:1" without a value."""
        pairs = list(node.value)
        for place, (key, value) in enumerate(pairs):
            if value.value == "" and isinstance(key, yaml.ScalarNode) and not value.style:
                name, colon, rest = key.value.partition(":")
                if not colon or not rest or key.style:
                    raise yaml.YAMLError(f"{key.value!r} has no value")
                pairs[place] = (_scalar(name), _scalar(rest))
        return super().construct_mapping(yaml.MappingNode(node.tag, pairs), deep=True)


# YAML's own words go: every plain scalar is text at first, and then `scalar` reads it.
_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.scalar)


def _scalar(text: str) -> yaml.ScalarNode:
    bare = read_text(text)
    return yaml.ScalarNode("tag:yaml.org,2002:str", bare, style=None if bare == text else '"')


def _read(text: str) -> Any:
    """Reads one list, group or quoted text that fills the whole of `text`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None or node.end_mark.index != len(text):
            raise yaml.YAMLError("there is more behind its end")
        return loader.construct_document(node)
    finally:
        loader.dispose()
