from __future__ import annotations

import math
import time
import unicodedata

import pytest
import regex

import rewards
from rewards import RewardError, Sample
from rewards.language import SCRIPTS, prose_of, script_of, thought_of

ENGLISH = "First we add three and four, then we check the sum."
CHINESE = "\u6211\u4eec\u5148\u628a\u4e09\u548c\u56db\u76f8\u52a0\uff0c\u7136\u540e" * 2
JAPANESE = "\u307e\u305a\u4e09\u3068\u56db\u3092\u8db3\u3057\u3066\u3001\u6b21\u306b\u30c1\u30a7" * 2
KOREAN = "\uba3c\uc800 \uc14b\uacfc \ub137\uc744 \ub354\ud55c \ub2e4\uc74c" * 2
RUSSIAN = "\u0421\u043d\u0430\u0447\u0430\u043b\u0430 \u0441\u043b\u043e\u0436\u0438\u043c " * 2
ARABIC = "\u0646\u062c\u0645\u0639 \u062b\u0644\u0627\u062b\u0629 \u0648\u0623\u0631\u0628" * 2
TEXTS = {"en": ENGLISH, "zh": CHINESE, "ja": JAPANESE, "ko": KOREAN, "ru": RUSSIAN, "ar": ARABIC}


def share(completion: str, **settings: object) -> tuple[float | None, str]:
    [reward] = rewards.load("language", **settings)([Sample("", completion)])
    return reward.value, reward.reason


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("written", TEXTS)
def test_each_text_is_its_own_language_and_no_other(language: str, written: str) -> None:
    value, reason = share(f"<think>{TEXTS[written]}</think><answer>7</answer>", language=language)
    assert reason == "measured" and value is not None
    if written == language:
        assert value == 1.0
    elif (written, language) == ("ja", "zh"):
        assert 0.0 < value < 0.5, "Japanese has Chinese characters, too"
    else:
        assert value == 0.0 or (written, language) == ("zh", "ja")


def test_the_share_counted_by_hand() -> None:
    # 12 Latin letters and 4 Chinese ones
    assert share("<think>three plus \u4e09\u52a0 four\u4e09 \u56db!</think>", min_characters=5) == (13 / 17, "measured")


@pytest.mark.parametrize(
    ("hidden", "counted"),
    [
        ("```python\n\u4e2d = 1\n``` rest", "rest"),
        (r"$\text{\u4e2d}$ and $$\alpha\beta \u4e2d$$ end", "and end"),
        (r"\[ \u4e2d \] or \( \u4e2d \) so", "or so"),
        (r"\begin{align} \u4e2d \end{align}x", "align"),
        (r"\frac34 of \sqrt{ten}", "of ten"),
        ("<b>word</b> `\u4e2d` on", "word on"),
        ("let x = 3 and y = \u03b1, A plus B", "let and plus"),
        ("12 + 34 = 46 !?", ""),
        ("costs $5 here", "costs here"),
        ("```python\nopen fence", "python open fence"),
        (r"\[ open formula", "open formula"),
    ],
)
def test_what_is_not_prose_does_not_count(hidden: str, counted: str) -> None:
    text = hidden.replace(r"\u4e2d", "\u4e2d")
    letters = "".join(letter for letter in prose_of(text) if letter.isalpha())
    assert letters == counted.replace(" ", "")


def test_only_the_thought_counts() -> None:
    assert share(f"<think>{ENGLISH}</think><answer>{CHINESE}</answer>") == (1.0, "measured")
    assert share(f"{ENGLISH}</think>{CHINESE}") == (1.0, "measured")  # the template opened the thought
    assert share(f"<think>{CHINESE}") == (0.0, "measured")  # cut off
    assert thought_of("a<think> b </think> c </think> d") == "b </think> c"
    assert thought_of(" no tags ") == "no tags"


def test_thinking_nothing_earns_nothing() -> None:
    assert share("<think></think><answer>seven, of course, is the answer</answer>") == (0.0, "too_short")
    assert share("<think>so it is</think>") == (0.0, "too_short")
    assert share("<think>3 + 4 = 7, 7 + 1 = 8, 8 * 2 = 16</think>") == (0.0, "too_short")
    assert share(f"<think>{'.' * 200}</think>") == (0.0, "too_short")
    assert share("<think>12 + 3</think>", min_characters=0) == (1.0, "no_letters")


@pytest.mark.parametrize("opener, closer", [("```", "```"), ("$", "$"), (r"\[", r"\]"), ("`", "`")])
def test_another_language_cannot_hide_in_code_or_formulas(opener: str, closer: str) -> None:
    assert share(f"<think>{opener}{CHINESE}{closer}</think>") == (0.0, "measured")
    value, _ = share(f"<think>{ENGLISH} {opener}{CHINESE * 9}{closer}</think>")
    assert value is not None and value < 0.25
    # English in code does not count, neither for English nor against Chinese.
    assert share(f"<think>{opener}{ENGLISH}{closer}</think>") == (0.0, "too_short")
    assert share(f"<think>{CHINESE} {opener}{ENGLISH}{closer}</think>", language="zh") == (1.0, "measured")


def test_unknown_languages_are_refused_when_loaded() -> None:
    with pytest.raises(RewardError, match="'language' cannot be made: language='xx' is not known; use one of ar, "):
        rewards.load("language", language="xx")


# Of the letters below 0x10000: marks and extenders that several scripts share, and turned letters named without one.
DIFFER = {
    "ARABIC TATWEEL",
    "KATAKANA-HIRAGANA PROLONGED SOUND MARK",
    "MODIFIER LETTER CAPITAL BARRED B",
    "MODIFIER LETTER CAPITAL REVERSED N",
    "MODIFIER LETTER SMALL TURNED I",
    "TURNED CAPITAL F",
    "TURNED SMALL F",
    "ROMAN NUMERAL REVERSED ONE HUNDRED",
    "IDEOGRAPHIC CLOSING MARK",
    "VERTICAL IDEOGRAPHIC ITERATION MARK",
}


def test_scripts_agree_with_those_of_the_regex_package() -> None:
    # Ours are read off the letters' names, theirs from Unicode's table of scripts.
    ours = {script: {script} for script in SCRIPTS} | {"HAN": {"CJK", "IDEOGRAPHIC"}}
    letters = [chr(code) for code in range(0x10000) if chr(code).isalpha()]
    plain = {letter: unicodedata.normalize("NFKC", letter)[:1] for letter in letters}
    differ = set()
    for script in ours.keys() - {"CJK", "IDEOGRAPHIC"}:
        theirs = regex.compile(rf"\p{{Script={script.title()}}}")
        for letter in letters:
            if (script_of(letter) in ours[script]) != bool(theirs.match(plain[letter])) and plain[letter].isalpha():
                differ.add(unicodedata.name(plain[letter]))
    assert differ == DIFFER


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["word ", "\\[", "$", "```", "`", "<think>", "\\begin{", "<a", "\u4e2d\u6587", "a b c ", "\\a", "$$ "],
)
def test_200_kB_are_linear(text: str) -> None:
    judge = rewards.load("language")
    seconds = {50_000: math.inf, 200_000: math.inf}
    for size in [*seconds] * 3:
        start = time.process_time()
        judge([Sample("", text * (size // len(text)))])
        seconds[size] = min(seconds[size], time.process_time() - start)
    # 4 times the text; a quadratic search takes 16 times as long.
    assert seconds[200_000] < 0.2 and seconds[200_000] < 10 * max(seconds[50_000], 0.002)
