"""Tokenizers: one for new models, trained on the text of their task, and those that come with a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from rlkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")
MARKS = ("<|user|>", "<|assistant|>", "<think>", "</think>", "<answer>", "</answer>")
"""They are one token each, but not special: rewards read them, so decoding keeps them."""
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS) + len(MARKS)
PROBES = ("12 + 34 - 5\nHow are you?", "def f(x):\n    return x\n\n\tf(1)", "a  b   c")
"""Texts that must come back from their ids: digits, words, and every kind of white space that a task may be about."""
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "additional_chat_templates"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
)
"""Everything that transformers, vLLM and others read a tokenizer from, in one format or another."""
FIX = "load the model's tokenizer with transformers and save it there (tokenizer.save_pretrained)"

# A system message stands right after <bos>, as in DeepSeek-V3's own template.
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{- message.content -}}"
    "{%- elif message.role == 'user' -%}{{- '<|user|>' + message.content -}}"
    "{%- elif message.role == 'assistant' -%}{{- '<|assistant|>' + message.content + eos_token -}}"
    "{%- else -%}{{- raise_exception('role must be system, user or assistant, not ' + message.role) -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Trains byte-level BPE with single digits: any text encodes, and 123 is always three tokens.

    `special` are further special tokens, behind all others.

    The result has at most `vocab_size` tokens, fewer if the texts offer no more pairs to merge. Marks stay in decoded
    text when special tokens are skipped. Raises UserError if `vocab_size` cannot hold the bytes and the marks.
    """
    from transformers import PreTrainedTokenizerFast  # takes seconds to import

    if vocab_size < (least := MIN_VOCAB_SIZE + len(special)):
        raise UserError(
            f"model.architecture.vocab_size={vocab_size} is too small: 256 bytes, {len(SPECIAL_TOKENS) + len(special)} "
            f"special tokens and {len(MARKS)} marks need {least}"
        )
    tokenizer = Tokenizer(models.BPE())
    # Digits first: the byte-level split would keep "123" in one piece, and BPE would learn arbitrary chunks of numbers.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKS) - len(special),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in special])
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a checkpoint: that of tokenizer.json, with the template and special tokens beside it.

    transformers also offers the class that tokenizer_config.json names, and builds its own tokenizer from the words of
    tokenizer.json then. Where the name is wrong, that tokenizer drops spaces and line breaks without a word; engines
    decode with tokenizer.json. So the class is not asked, and the two are compared on text and on a rendered prompt.

    `<think>` and `<answer>` may be tokens, or plain text in several tokens. Raises UserError if there is no tokenizer,
    if it has no chat template or end token, if it loses a part of a text that goes through its ids, and if it drops a
    mark when it decodes, since rewards read them.
    """
    from transformers import PreTrainedTokenizerFast  # takes seconds to import

    backend = _read_backend(folder)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # each file beside tokenizer.json is read by code of its own
        raise UserError(f"model.path={folder}: its tokenizer cannot be read; {FIX} ({error})") from error
    if not tokenizer.chat_template:
        fix = "add chat_template.jinja, or use an instruction-tuned model's tokenizer"
        raise UserError(f"model.path={folder}: its tokenizer has no chat template; {fix}")
    if tokenizer.eos_token is None:
        raise UserError(f"model.path={folder}: its tokenizer has no end token; set eos_token in tokenizer_config.json")
    _check_ids(folder, tokenizer, backend)
    return tokenizer


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Says whether two tokenizers make the same tokens of every conversation."""

    def described(tokenizer: Any) -> tuple[Any, ...]:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = [backend[key] for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")]
        return (*rules, tokenizer.chat_template, tokenizer.eos_token_id)

    return described(one) == described(other)


def first_difference(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, names: tuple[str, str]
) -> str | None:
    """Says where two tokenizers first part, of what both need so that ids mean the same; None where they do not.

    Compared are the tokens id by id, the end token, how a text becomes tokens, and the chat template.
    """
    first, second = names
    tokens = [{number: token for token, number in each.get_vocab().items()} for each in (one, other)]
    for number in sorted(tokens[0].keys() | tokens[1].keys()):
        words = [repr(each[number]) if number in each else "no token" for each in tokens]
        if words[0] != words[1]:
            return f"id {number} is {words[0]} for {first} and {words[1]} for {second}"
    if one.eos_token_id != other.eos_token_id:
        return f"{first} ends with {one.eos_token!r}, {second} with {other.eos_token!r}"
    if one.chat_template != other.chat_template:
        return "their chat templates differ"
    return None if same_tokenizer(one, other) else "they cut the same text into other tokens"


def read_decoder(folder: Path) -> Callable[[Sequence[int]], str]:
    """Returns what turns the ids of a completion into text, without special tokens; all engines share it.

    Raises UserError if the folder has no tokenizer.json, or one that cannot be read.
    """
    backend = _read_backend(folder)

    def decode(tokens: Sequence[int]) -> str:
        return backend.decode(list(tokens), skip_special_tokens=True)

    return decode


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer that `train_tokenizer` made, for transformers 5 and 4.

    transformers 5 writes the name of its own base class, which version 4 does not know; both know the older name.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    described = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(described, indent=2) + "\n")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer byte for byte: an export reads text exactly as the model that it came from."""
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)
            else:
                shutil.copytree(file, target / file.name, dirs_exist_ok=True)


def _read_backend(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"model.path={folder}: there is no tokenizer.json, with which engines decode; {FIX}")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"model.path={folder}: its tokenizer cannot be read; {FIX} ({error})") from error


def _check_ids(folder: Path, tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> None:
    """Refuses a tokenizer whose two descriptions differ, or from whose ids a text does not come back."""
    marked = [f"a{mark}b" for mark in MARKS[2:]]
    for text in (*PROBES, *marked):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        theirs = backend.encode(text, add_special_tokens=False).ids
        if list(ids) != theirs:
            raise UserError(
                f"model.path={folder}: tokenizer_config.json adds to what tokenizer.json says: {text!r} is {ids} with "
                f"both and {theirs} without, which engines decode with; {FIX}"
            )
    for text in PROBES:
        back = backend.decode(_ids(backend, text), skip_special_tokens=True)
        if back not in (text, f" {text}"):  # some write a blank in front of every text
            raise UserError(
                f"model.path={folder}: its tokenizer does not give text back: {text!r} comes back as {back!r}; use the "
                "tokenizer.json that belongs to the model"
            )
    for mark, text in zip(MARKS[2:], marked, strict=True):
        if mark not in backend.decode(_ids(backend, text), skip_special_tokens=True):
            fix = 'if it is a special token, give it "special": false in tokenizer.json'
            raise UserError(f"model.path={folder}: its tokenizer drops {mark} when it decodes; {fix}")


def _ids(backend: Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids
