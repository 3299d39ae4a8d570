"""Chat templates of five kinds, and a tokenizer with the tokens that they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from rlkit.data.tokenizer import CHAT_TEMPLATE, train_tokenizer

TEXTS = [
    "You are a helpful assistant. What is three plus four? Seven. And now? Let me think about it.",
    "user assistant system\n\nthink: 3 + 4 = 7, so the answer is seven.\n<think>\n</think>",
]
ENDS = ("<|im_end|>",)
SPECIAL = ("<|im_start|>", *ENDS)

CHATML = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}{%- endif -%}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""With a default system message, as Qwen2.5's."""

MARKED = (
    "{{- bos_token -}}{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- generation -%}{{- m.content + '<|im_end|>' -}}{%- endgeneration -%}{{- '\n' -}}"
    "{%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""Marks what the assistant says."""

OPENING = (
    "{{- bos_token -}}{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}{{- m.content -}}{%- elif m.role == 'user' -%}{{- '<|user|>' + m.content -}}"
    "{%- elif m.role == 'assistant' -%}{%- set words = m.content -%}"
    "{%- if '</think>' in words -%}{%- set words = words.split('</think>')[-1] -%}{%- endif -%}"
    "{{- '<|assistant|>' + words + eos_token -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|><think>\n' -}}{%- endif -%}"
)
"""Opens the thought in the prompt and leaves thoughts out of every turn, as DeepSeek-R1's."""

DROPPING = (
    "{%- set last = namespace(user=0) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' -}}"
    "{%- if m.role == 'assistant' -%}"
    "{%- set thought = '' -%}{%- set words = m.content -%}"
    "{%- if m.reasoning_content is string -%}{%- set thought = m.reasoning_content -%}"
    "{%- elif '</think>' in words -%}"
    "{%- set thought = words.split('</think>')[0].split('<think>')[-1].strip() -%}"
    "{%- set words = words.split('</think>')[-1].lstrip() -%}{%- endif -%}"
    "{%- if loop.index0 > last.user and thought -%}{{- '<think>\n' + thought + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- words + '<|im_end|>\n' -}}"
    "{%- else -%}{{- m.content + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""Shows the thought of the turn that is being written, and drops those before it, as Qwen3's."""

PARTS = CHATML.replace("m.content", "m.content[0].text")
"""Wants every content as a list of parts."""

TEMPLATES = {"own": CHAT_TEMPLATE, "default system": CHATML, "marked": MARKED, "opening": OPENING, "dropping": DROPPING}


def speaking(template: str) -> PreTrainedTokenizerFast:
    """A small tokenizer with a template of its own."""
    tokenizer = train_tokenizer(TEXTS, 320, SPECIAL)
    tokenizer.chat_template = template
    if "im_end" in template:
        tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def chat(*contents: str, system: str = "", thoughts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """User and assistant in turn, after a system message if there is one."""
    roles = ("user", "assistant")
    messages: list[dict[str, Any]] = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    for message, thought in zip([m for m in messages if m["role"] == "assistant"], thoughts, strict=False):
        message["reasoning_content"] = thought
    return [*([{"role": "system", "content": system}] if system else []), *messages]


def rendered(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """What transformers makes of it."""
    return tokenizer.apply_chat_template([dict(m) for m in messages], return_dict=True, **options)
