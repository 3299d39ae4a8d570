"""Plain texts as demonstrations, whole or with a hole in the middle: all their tokens are learned.

Fill in the middle, in the order prefix, suffix, middle (PSM), as DeepSeek-V3 has it in pre-training
(arXiv:2412.19437, section 4.1, at a rate of 0.1; DeepSeek-Coder-V2, arXiv:2406.11931, section 3.1):

<|fim_begin|> prefix <|fim_hole|> suffix <|fim_end|> middle <eos>
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlkit.data.prompts import share_of_row
from rlkit.errors import UserError
from rlkit.types import Demonstration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIM_MARKS = ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>")
"""As the paper writes them, and as a tokenizer that rlkit trains has them."""
PUBLISHED_MARKS = ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>")
"""As the published tokenizers of DeepSeek have them, with a wide bar and a low block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Holds the plain text of one row."""

    id: str
    text: str

    @property
    def question(self) -> str:
        """What must not be in two splits."""
        return self.text

    @property
    def identity(self) -> str:
        """What makes two rows the same."""
        return self.text


class DocumentEncoder:
    """Makes a demonstration of a document; a share of them, chosen by seed and row, gets a hole in the middle."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, fim_rate: float, seed: int) -> None:
        """Raises UserError for a tokenizer without an end token or, where holes are wanted, without their marks."""
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no end token; set eos_token in its config")
        self._tokenizer, self._rate, self._seed, self._end = tokenizer, fim_rate, seed, end
        self._start = [tokenizer.bos_token_id] if isinstance(tokenizer.bos_token_id, int) else []
        self._marks = fim_marks(tokenizer) if fim_rate else None

    def __call__(self, document: Document) -> tuple[Demonstration, ...]:
        """Lays the text, or its three pieces, between start and end token; all but the first token are learned.

        The text is cut at two of its characters, each place alike (Bavarian et al., arXiv:2207.14255, section 3).
        """
        if self._marks and share_of_row(self._seed, f"{document.id}/fim") < self._rate:
            begin, hole, end = self._marks
            prefix, middle, suffix = cut(document.text, f"{self._seed}/{document.id}/cut")
            body = [begin, *self._ids(document, prefix), hole, *self._ids(document, suffix), end]
            body += self._ids(document, middle)
        else:
            body = self._ids(document, document.text)
        tokens = (*self._start, *body, self._end)
        return (Demonstration(id=document.id, tokens=tokens, trained=((1, len(tokens)),)),)

    def _ids(self, document: Document, text: str) -> list[int]:
        """A document that speaks of special tokens has their letters in it, and not the tokens."""
        try:
            return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        except Exception as error:  # tokenizers raises all kinds
            raise UserError(
                f"the tokenizer of model.path cannot encode row {document.id!r} ({type(error).__name__}: {error}); "
                "repair the text or remove the row"
            ) from error


def cut(text: str, seed: str) -> tuple[str, str, str]:
    """Cuts a text at two places, drawn with equal chance from all between and around its characters."""
    places = random.Random(seed)
    first, last = sorted((places.randint(0, len(text)), places.randint(0, len(text))))
    return text[:first], text[first:last], text[last:]


def fim_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Returns the ids of begin, hole and end; UserError for a tokenizer that has none."""
    vocabulary = tokenizer.get_vocab()
    for begin, hole, end in (FIM_MARKS, PUBLISHED_MARKS):
        if {begin, hole, end} <= vocabulary.keys():
            return vocabulary[begin], vocabulary[hole], vocabulary[end]
    raise UserError(
        f"data.fim_rate: the tokenizer {tokenizer.name_or_path!r} has no {', '.join(FIM_MARKS)}; add the three to it "
        "and rows for them to the model's embedding, or set data.fim_rate=0"
    )
