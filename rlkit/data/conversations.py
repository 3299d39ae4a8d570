"""Conversations as demonstrations: the words of the assistant are learned, and found by their token ids.

What an engine will see before a turn is the template over the messages before it, up to where the assistant writes:
the turn's prompt. What it should write then is the rest of the template over the messages with the turn. Where each
turn, as it stands at its own time, is a beginning of the whole conversation, the conversation is one demonstration
with several trained spans. Two kinds of template make it otherwise. Some rewrite history: they leave the thoughts of
earlier turns out once a new one begins. Then each turn is a demonstration of its own, as it stands at its time; else
the model would learn answers without thoughts. Some lose words of the turn itself, or open its <think> in the prompt
and not in the turn (DeepSeek-R1's does both). Then the words are written behind the prompt as they are.

A template that marks the assistant's words itself ({% generation %}) is taken at its word. A default system message
is in every prompt, so that it does no harm. What is not covered: tool calls, images, weights of single turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkit.data.cells import cell_text, is_missing, is_text
from rlkit.data.chat import FIX, check_template, form_of, holds, named
from rlkit.errors import UserError
from rlkit.types import Demonstration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "developer", "user", "assistant", "tool")
THOUGHT = "reasoning_content"
"""The key of a message that holds its thought apart, as in DeepSeek's API and the templates of reasoning models."""
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
OPEN, CLOSE = "<think>", "</think>"

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Holds the messages of one row, up to the last one of the assistant.

    Example: `Conversation(id="chat/3", messages=({"role": "user", "content": "3 + 4"}, ...))`
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]

    @property
    def spoken(self) -> list[int]:
        """Places of the assistant's messages."""
        return [place for place, message in enumerate(self.messages) if message["role"] == "assistant"]

    @property
    def question(self) -> str:
        """What the user says, all turns together."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def identity(self) -> str:
        """What makes two rows the same."""
        return json.dumps(self.messages, ensure_ascii=False, sort_keys=True, default=str)

    @property
    def text(self) -> str:
        """All words, for a tokenizer that learns from them."""
        return "\n".join(f"{message.get(THOUGHT, '')}{message['content']}" for message in self.messages)


def read_conversation(id: str, value: Any, column: str) -> Conversation:
    """Checks a cell of messages: `[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]`.

    Raises UserError, naming the row and the message, for what is no such list, and for one without an assistant's turn
    behind a user's.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(message, Mapping) for message in value):
        raise UserError(f"row {id!r}: {column!r} holds no list of messages; each is {{'role': ..., 'content': ...}}")
    messages = [_message(f"row {id!r}, {column}[{place}]", message) for place, message in enumerate(value)]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise UserError(f"row {id!r}: no message of {column!r} is the assistant's; remove the row")
    if "user" not in roles[: roles.index("assistant")]:
        raise UserError(
            f"row {id!r}: in {column!r} the assistant speaks before the user does; remove its first message, or the row"
        )
    last = len(roles) - 1 - roles[::-1].index("assistant")
    return Conversation(id=id, messages=tuple(messages[: last + 1]))


def _message(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    # A table gives every message the keys of all others, with nothing in them.
    kept = {str(key): value for key, value in message.items() if not is_missing(value)}
    if (role := kept.get("role")) not in ROLES:
        raise UserError(f"{where}: its role is {role!r}; use one of {', '.join(ROLES)}")
    if kept.get("tool_calls"):
        raise UserError(f"{where} calls a tool, which SFT does not cover; remove the row")
    for key in ("content", THOUGHT):
        if key not in kept:
            continue
        if not is_text(kept[key]):
            raise UserError(f"{where}: its {key} is no text but a {type(kept[key]).__name__}; write it as text")
        kept[key] = cell_text(kept[key])
        if any("\ud800" <= char <= "\udfff" for char in kept[key]):
            raise UserError(f"{where}: its {key} holds half a character; repair the text or remove the row")
    if "content" not in kept or (role == "assistant" and not (kept["content"].strip() or kept.get(THOUGHT))):
        raise UserError(f"{where} has no content; fill it in or remove the row")
    return kept


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of the assistant as it stands at its own time: all tokens up to its end, and which of them are its."""

    tokens: tuple[int, ...]
    trained: Spans

    @property
    def said(self) -> tuple[int, ...]:
        """The tokens up to the last trained one: a template may write a line break behind the end token."""
        return self.tokens[: self.trained[-1][1]]


class ConversationEncoder:
    """Makes demonstrations of conversations by a tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        """`ends` are the tokens at which engines stop.

        Raises UserError for a tokenizer without template or end token.
        """
        check_template(tokenizer)
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no end token; set eos_token in its config")
        self._tokenizer, self._form, self._end = tokenizer, form_of(tokenizer), end
        self._ends = {*ends, end}
        self._is_marked = bool(MARKED.search(str(tokenizer.get_chat_template())))

    def __call__(self, talk: Conversation) -> tuple[Demonstration, ...]:
        """Returns one demonstration of the whole conversation, or one for each turn (see the head of this file).

        Raises UserError, naming the row, for a template that fails on it or loses what is said to the assistant, and
        for an end token in the middle of a turn.
        """
        turns = [self._turn(talk, place) for place in talk.spoken]
        whole = turns[-1].tokens
        if all(whole[: len(turn.said)] == turn.said for turn in turns):
            trained = tuple(span for turn in turns for span in turn.trained)
            return (Demonstration(id=talk.id, tokens=whole, trained=trained),)
        return tuple(
            Demonstration(id=f"{talk.id}#{number}", tokens=turn.tokens, trained=turn.trained)
            for number, turn in enumerate(turns, start=1)
        )

    def _turn(self, talk: Conversation, place: int) -> _Turn:
        """Finds the tokens of one turn, as the engine will have to write them."""
        before, turn = talk.messages[:place], talk.messages[place]
        prompt = self._render(talk, before, asks=True)
        for message in before:
            if message["role"] != "assistant" and not holds(prompt, message["content"]):
                raise UserError(
                    f"model.path: the chat template of {named(self._tokenizer)} loses the {message['role']} message "
                    f"{message['content'][:200]!r} of row {talk.id!r}; {FIX}"
                )
        if self._is_marked:
            return self._marked(talk, place)
        prompt_ids = self._ids(talk, prompt)
        full = self._render(talk, talk.messages[: place + 1], asks=False)
        said = full.removeprefix(prompt) if full.startswith(prompt) else ""
        if all(holds(said, turn.get(key, "")) for key in ("content", THOUGHT)):
            ids = self._ids(talk, full)
            if ids[: len(prompt_ids)] != prompt_ids:
                # A token spans the boundary, and an engine, which is given the prompt, can never write it.
                ids = prompt_ids + self._ids(talk, said)
            ends = [at for at in range(len(prompt_ids), len(ids)) if ids[at] in self._ends]
            if len(ends) == 1:
                return _Turn(ids, ((len(prompt_ids), ends[0] + 1),))
            if ends:
                raise self._early_end(talk, place)
        words = self._ids(talk, _written(prompt, turn))
        if self._ends & set(words):
            raise self._early_end(talk, place)
        ids = (*prompt_ids, *words, self._end)
        return _Turn(ids, ((len(prompt_ids), len(ids)),))

    def _marked(self, talk: Conversation, place: int) -> _Turn:
        """Asks transformers which tokens the template marks, and takes those behind the messages before the turn."""
        found = self._try(talk, talk.messages[: place + 1], tokenize=True, return_assistant_tokens_mask=True)
        ids, mask = tuple(found["input_ids"]), list(found["assistant_masks"])
        before = self._ids(talk, self._render(talk, talk.messages[:place], asks=False))
        shared = next((at for at, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), len(before))
        first = max(1, min(shared, len(ids)))  # before the first token of all there is nothing to learn it from
        if not any(mask[first:]):
            raise UserError(
                f"model.path: the chat template of {named(self._tokenizer)} marks no token of message {place} of row "
                f"{talk.id!r} as the assistant's; put {{% generation %}} around all that it writes, or take it out"
            )
        return _Turn(ids, _spans([*[0] * first, *mask[first:]]))

    def _early_end(self, talk: Conversation, place: int) -> UserError:
        return UserError(
            f"message {place} of row {talk.id!r} holds an end token such as {self._tokenizer.eos_token!r} in its "
            "middle, where the model would learn to stop; take it out of the text or remove the row"
        )

    def _render(self, talk: Conversation, messages: Sequence[Mapping[str, Any]], *, asks: bool) -> str:
        return str(self._try(talk, messages, add_generation_prompt=asks, tokenize=False))

    def _try(self, talk: Conversation, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        chat = [{**message, "content": self._form(message["content"])} for message in messages]
        try:
            return self._tokenizer.apply_chat_template(chat, return_dict=bool(options.get("tokenize")), **options)
        except Exception as error:  # jinja's own errors, raise_exception of the template, or Python's from inside it
            raise UserError(
                f"model.path: the chat template of {named(self._tokenizer)} fails on row {talk.id!r} "
                f"({type(error).__name__}: {error}); {FIX}, or remove the row"
            ) from error

    def _ids(self, talk: Conversation, text: str) -> tuple[int, ...]:
        """The template has written every special token already, so none is added."""
        try:
            return tuple(self._tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"])
        except Exception as error:  # tokenizers raises all kinds
            raise UserError(
                f"{named(self._tokenizer)} of model.path cannot encode row {talk.id!r} ({type(error).__name__}: "
                f"{error}); repair the text or remove the row"
            ) from error


def _written(prompt: str, turn: Mapping[str, Any]) -> str:
    """Returns what to write behind a prompt for a turn that the template does not give whole.

    Where the prompt has opened the thought, the thought goes on; where there is none, it is closed at once.
    """
    words = turn["content"]
    if thought := turn.get(THOUGHT):
        words = f"{OPEN}\n{thought}\n{CLOSE}\n\n{words}"
    opened = prompt.rstrip()
    if not opened.endswith(OPEN):
        return words
    blank = prompt[len(opened) :]
    if words.lstrip().startswith(OPEN):
        return words.lstrip().removeprefix(OPEN).removeprefix(blank)
    return ("\n" if blank else "\n\n") + f"{CLOSE}\n\n{words}" if CLOSE not in words else words


def _spans(mask: Sequence[int]) -> Spans:
    """Returns first and end of each run of ones."""
    edges = [at for at in range(len(mask) + 1) if (at < len(mask) and mask[at]) != (at > 0 and bool(mask[at - 1]))]
    return tuple(zip(edges[::2], edges[1::2], strict=True))
