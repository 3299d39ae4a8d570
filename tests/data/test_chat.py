"""Chat templates as models bring them: what they do to a question is looked at, row by row."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlkit.data.prompts import to_demonstrations, to_prompts
from rlkit.data.rows import Row
from rlkit.data.tokenizer import train_tokenizer

ROWS = [Row(id=f"sums/{i}", question=f"{i} + 5", answer=str(i + 5), solution="", meta={}) for i in range(4)]
PARTS = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"


def tokenizer(template: str, **changes: Any) -> PreTrainedTokenizerFast:
    made = train_tokenizer([], 265)
    made.chat_template = f"{{% for m in messages %}}{template}{{% endfor %}}"
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def row(question: str, id: str = "sums/9") -> Row:
    return Row(id=id, question=question, answer="1", solution="", meta={})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<u>{{ m.content }}</u>", "<u>Add.\n0 + 5</u>"),
        ("<u>{{ m['content'] | trim }}</u>", "<u>Add.\n0 + 5</u>"),
        (f"<u>{PARTS}</u>", "<u>Add.\n0 + 5</u>"),
        ("{% for p in m.content %}{{ p['text'] }}{% endfor %}", "Add.\n0 + 5"),
        ("{{ m.content[0].text }}|", "Add.\n0 + 5|"),
        ("{% if m.content is string %}S{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}", "SAdd.\n0 + 5"),
        ("{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}{{ m.content[0].text }}", "Add.\n0 + 5"),
        ("{{ 'Q: ' + m.content }}", "Q: Add.\n0 + 5"),
    ],
)
def test_templates_get_the_content_in_the_form_they_want(template: str, text: str) -> None:
    """One that wants content parts made a prompt without the question of every row."""
    prompts = to_prompts(ROWS, tokenizer(template), "Add.", 99)
    assert prompts[0].text == text and len({prompt.tokens for prompt in prompts}) == len(ROWS)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("Solve it.", r"loses the question of row 'sums/0': it makes 'Solve it\.' of '0 \+ 5'"),
        ("", r"loses the question of row 'sums/0'"),
        ("{{ m.text }}", r"loses the question of row 'sums/0'"),
        ("{{ m.content | length }}", r"loses the question"),
        ("{{ m.content[:3] }}", r"loses the question"),
        ("{{ m.content | upper }}x", r""),
        ("{% if m.role == 'human' %}{{ m.content }}{% endif %}", r"loses the question"),
        ("{{ raise_exception('no user turns') }}", r"fails on row 'sums/0'.*\(TemplateError: no user turns\)"),
        ("{{ m.content + 1 }}", r"fails on row 'sums/0' .*TypeError"),
        ("{{ messages[1].content }}", r"fails on row 'sums/0' .*UndefinedError"),
        ("{{ m.content | nofilter }}", r"fails on row 'sums/0' .*nofilter"),
        ("{% if %}", r"fails on row 'sums/0' .*TemplateSyntaxError"),
        ("{{ m.content.nothing.at.all }}", r"fails on row 'sums/0' .*UndefinedError"),
    ],
)
def test_templates_that_lose_the_question_or_raise_are_named(template: str, words: str) -> None:
    made = tokenizer(template, name_or_path="some/folder")
    rows = [row("a + b")] if not words else ROWS
    with pytest.raises(ValueError, match=words or r"loses the question of row 'sums/9'") as refused:
        to_prompts(rows, made, "", 99)
    assert "model.path: the chat template of the tokenizer 'some/folder'" in str(refused.value)
    assert "correct chat_template.jinja" in str(refused.value)
    with pytest.raises(ValueError):
        to_demonstrations(rows, made, "", 1.0, 0)


def test_the_row_that_a_template_stumbles_over_is_named() -> None:
    template = "{% if '7' in m.content %}{{ raise_exception('a seven') }}{% endif %}{{ m.content.split('!')[0] }}"
    with pytest.raises(ValueError, match=r"fails on row 'sums/7'.*a seven"):
        to_prompts([*ROWS, row("7 + 5", "sums/7")], tokenizer(template), "", 99)
    with pytest.raises(ValueError, match=r"loses the question of row 'sums/8': it makes 'wow' of 'wow! 3'"):
        to_prompts([*ROWS, row("wow! 3", "sums/8")], tokenizer(template), "", 99)


def test_questions_that_become_one_prompt_are_named() -> None:
    """White space around a question is the template's to strip; inside, it is the question's."""
    made = tokenizer("{{ m.content.split() | join(' ') }}")
    with pytest.raises(ValueError, match=r"rows 'a' and 'b' have different questions and the same prompt"):
        to_prompts([row("x\n  y", "a"), row("x\ny", "b")], made, "", 99)
    assert len(to_prompts([row(" x", "a"), row("x", "b")], made, "", 99)) == 2
    assert len(to_prompts([row("x", "a"), row("x", "b")], made, "", 99)) == 2


def test_a_prompt_of_which_no_token_is_made_is_named() -> None:
    from tokenizers import Tokenizer, models

    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template="{{ messages[0].content }}")
    with pytest.raises(ValueError, match="the prompt of row 'sums/9' is empty: this tokenizer makes no token of it"):
        to_prompts([row("xyz")], made, "", 99)


@pytest.mark.parametrize("text", ["half \ud83d", "\udc80", "a\ud800b"])
def test_what_the_tokenizer_cannot_encode_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot encode row 'sums/9' \(.*\); repair the text or remove the row"):
        to_prompts([*ROWS, row(text)], tokenizer("{{ m.content }}"), "", 99)
