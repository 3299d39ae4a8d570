"""Tokenizers: one for new models, trained on the text of their task, and those that come with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")
MARKS = ("<|user|>", "<|assistant|>", "<think>", "</think>", "<answer>", "</answer>")
"""One token each, but not special: rewards read them, so decoding keeps them."""
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS) + len(MARKS)
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


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits: any text encodes, and 123 is always three tokens.

    The result has at most `vocab_size` tokens, fewer if the texts offer no more pairs to merge. Marks stay in decoded
    text when special tokens are skipped. Raises ValueError if `vocab_size` cannot hold the bytes and the marks.
    """
    from transformers import PreTrainedTokenizerFast  # takes seconds to import

    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"model.architecture.vocab_size={vocab_size} is too small: 256 bytes, {len(SPECIAL_TOKENS)} special "
            f"tokens and {len(MARKS)} marks need {MIN_VOCAB_SIZE}"
        )
    tokenizer = Tokenizer(models.BPE())
    # Digits first: the byte-level split would keep "123" in one piece, and BPE would learn arbitrary chunks of numbers.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
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
    """The tokenizer of a checkpoint; `<think>` and `<answer>` may be tokens of it, or plain text in several tokens.

    ValueError if there is none, if it has no chat template or end token, and if it drops a mark when it decodes, since
    rewards read them.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    decode = read_decoder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model.path={folder}: its tokenizer cannot be read; {FIX} ({error})") from error
    if not tokenizer.chat_template:
        fix = "add chat_template.jinja, or use an instruction-tuned model's tokenizer"
        raise ValueError(f"model.path={folder}: its tokenizer has no chat template; {fix}")
    if tokenizer.eos_token is None:
        raise ValueError(f"model.path={folder}: its tokenizer has no end token; set eos_token in tokenizer_config.json")
    for mark in MARKS[2:]:
        ids = tokenizer(f"a{mark}b", add_special_tokens=False)["input_ids"]
        if mark not in decode(ids):
            fix = 'if it is a special token, give it "special": false in tokenizer.json'
            raise ValueError(f"model.path={folder}: its tokenizer drops {mark} when it decodes; {fix}")
    return tokenizer


def read_decoder(folder: Path) -> Callable[[Sequence[int]], str]:
    """What turns the ids of a completion into text, without special tokens; engines share it, so rewards read the same.

    ValueError if the folder has no tokenizer.json, or one that cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"model.path={folder}: there is no tokenizer.json, with which engines decode; {FIX}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"model.path={folder}: its tokenizer cannot be read; {FIX} ({error})") from error

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(list(tokens), skip_special_tokens=True)

    return decode
