"""Messages in a chat template, and the proof that the template took them.

A template is a program that came with a model. It may want the content in another form than plain text, drop it, or
raise; what it makes of every row is looked at before a run starts, because nothing later would notice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlkit.data.rows import Row
from rlkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "How much is 12 + 34?"
FIX = "correct chat_template.jinja in the folder of model.path, or use another model's tokenizer"


def render(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[str]:
    """Puts each question, with the instruction before it, into the chat template, up to where the model writes.

    Raises UserError for a tokenizer without a template, and, naming the row, for a template that raises or whose text
    does not hold the question.
    """
    check_template(tokenizer)
    form = form_of(tokenizer)
    before = f"{instruction}\n" if instruction else ""
    return [_render_row(row, f"{before}{row.question}", tokenizer, form) for row in rows]


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; add chat_template.jinja to the folder of "
            "model.path, or use an instruction-tuned model's tokenizer"
        )


def check_distinct(rows: Sequence[Row], prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError for a prompt without tokens, and for two questions whose prompts are the same tokens.

    Questions that differ in white space around them may share a prompt: templates are free to strip it.
    """
    first: dict[tuple[int, ...], Row] = {}
    for row, tokens in zip(rows, map(tuple, prompts), strict=True):
        if not tokens:
            raise UserError(f"the prompt of row {row.id!r} is empty: {named(tokenizer)} makes no token of it; {FIX}")
        other = first.setdefault(tokens, row)
        if other.question.strip() != row.question.strip():
            raise UserError(
                f"rows {other.id!r} and {row.id!r} have different questions and the same prompt: {named(tokenizer)} "
                f"loses what differs; {FIX}, or remove one of the rows"
            )


Form = Callable[[str], Any]
"""Makes the content of a message out of its text."""


def plain(text: str) -> str:
    """Returns the content as most templates want it: the text itself."""
    return text


def parts(text: str) -> list[dict[str, str]]:
    """Returns the content as templates of models that also see images want it: a list with one part of text."""
    return [{"type": "text", "text": text}]


def form_of(tokenizer: PreTrainedTokenizerBase) -> Form:
    """Returns the first form of content that comes out of the template whole; plain text if none does."""
    for form in (plain, parts):
        try:
            text = _ask(tokenizer, form(PROBE))
            # A template for plain text would print the list of parts as Python writes it, with the question inside.
            if holds(text, PROBE) and str(parts(PROBE)) not in text:
                return form
        except Exception:  # a template may raise anything; with the rows it is raised again, and then reported
            continue
    return plain


def _render_row(row: Row, content: str, tokenizer: PreTrainedTokenizerBase, form: Form) -> str:
    try:
        text = _ask(tokenizer, form(content))
    except Exception as error:  # jinja's own errors, raise_exception of the template, or Python's from inside it
        raise UserError(
            f"model.path: the chat template of {named(tokenizer)} fails on row {row.id!r} with a single user message "
            f"({type(error).__name__}: {error}); {FIX}"
        ) from error
    if not holds(text, content):
        raise UserError(
            f"model.path: the chat template of {named(tokenizer)} loses the question of row {row.id!r}: it makes "
            f"{text[:200]!r} of {content[:200]!r}; {FIX}"
        )
    return text


def _ask(tokenizer: PreTrainedTokenizerBase, content: Any) -> str:
    messages = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def holds(text: str, content: str) -> bool:
    """Says whether a text has the content in it, but for white space, which templates strip around a message."""
    return "".join(content.split()) in "".join(text.split())


def named(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a tokenizer in a message."""
    return f"the tokenizer {tokenizer.name_or_path!r}" if tokenizer.name_or_path else "this tokenizer"
