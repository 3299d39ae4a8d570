"""What SFT shows: the keys that `data` has besides in a run with demonstrations, and the parts of a mixture."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from rlkit.checks import number, one_of
from rlkit.config.groups import DataConfig
from rlkit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """One data set of a mixture; a key that is null has the value that it has in `data`."""

    source: str
    weight: float = 1.0
    """How often it is shown, beside the weights of the other parts."""
    stream: bool = False
    """Whether rows are read while the run goes, in their order, instead of all before it."""
    tasks: dict[str, Any] | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    solution_column: str | None = None
    instruction: str | None = None
    messages_column: str | None = None
    response_column: str | None = None
    system_prompt: str | None = None
    text_column: str | None = None
    fim_rate: float | None = None

    def __post_init__(self) -> None:
        """Refuses a part that is never shown, or that shows nothing."""
        number("weight", self.weight, above=0, fix="remove the part to leave it out")
        if not self.source:
            raise UserError("source='' names nothing; give a file, a hub id or a named data set")


@dataclass(frozen=True, kw_only=True)
class SftDataConfig(DataConfig):
    """`data` in a run that shows demonstrations.

    A row is a plain text where `text_column` is set, else a conversation where it has a `messages_column` and no
    `prompt_column`, else a question: with the words of `response_column` where that is set, and otherwise with worked
    solution and answer inside <think> and <answer>.
    """

    messages_column: str
    """The column of conversations, each a list of {role, content}; every turn of the assistant is learned."""
    response_column: str
    """The column of whole responses to `prompt_column`; "" says that there is none."""
    system_prompt: str
    """A system message in front of the questions that `response_column` answers; "" puts none there."""
    text_column: str
    """The column of plain texts, of which every token is learned; "" says that there is none."""
    fim_rate: float
    """The share of plain texts that become prefix, suffix, middle (V3: 0.1)."""
    too_long: str
    """"refuse" ends a run with a row that does not fit before it starts; "drop" leaves such rows out, and counts."""
    mixture: tuple[PartConfig, ...]
    """Data sets to show in the place of `source`, which stays what is asked and judged; source="" asks nothing."""

    def __post_init__(self) -> None:
        """Refuses shares that are none, and keys that have nothing to act on."""
        super().__post_init__()
        number("data.fim_rate", self.fim_rate, least=0, most=1, fix="V3 has 0.1, 0 leaves texts as they are")
        one_of("data.too_long", self.too_long, ("refuse", "drop"))
        if not self.mixture:
            self._check_form()
        for i, part in enumerate(self.mixture):
            try:
                self.over(part)
            except UserError as error:
                raise UserError(f"data.mixture[{i}]: {error}") from None

    def over(self, part: PartConfig) -> SftDataConfig:
        """Returns a part of the mixture as if it were `data` itself."""
        keys = [f.name for f in fields(part) if f.name not in ("weight", "stream")]
        given = {key: value for key in keys if (value := getattr(part, key)) is not None}
        merged = {key: getattr(self, key) for key in ("text_column", "response_column")} | given
        # What stands in `data` for another form of rows than this part's has nothing to act on here.
        idle: dict[str, object] = {} if merged["text_column"] else {"fim_rate": 0.0}
        idle |= {} if merged["response_column"] else {"system_prompt": ""}
        return replace(self, mixture=(), eval_source="", **(idle | given))  # pyright: ignore[reportArgumentType]

    def _check_form(self) -> None:
        if not self.source:
            raise UserError("data.source='' and data.mixture=[] leave nothing to learn from; set one of them")
        if self.text_column and self.response_column:
            raise UserError(
                f"data.text_column={self.text_column!r} and data.response_column={self.response_column!r}: rows are "
                "either plain texts or questions with responses; leave one of the two empty"
            )
        if self.fim_rate and not self.text_column:
            raise UserError(
                f"data.fim_rate={self.fim_rate:g} is for plain texts; set data.text_column, or data.fim_rate to 0"
            )
        if self.system_prompt and not self.response_column:
            raise UserError(
                "data.system_prompt stands before questions that data.response_column answers, which is empty; set "
                "that, or write the system message into the rows of messages"
            )
