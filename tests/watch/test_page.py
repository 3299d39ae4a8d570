"""What every report is made of: its frame, tiles, answers and settings, and that a text is never a tag."""

from __future__ import annotations

from html import unescape

import pytest

from rlkit.watch.evaluations import SampleText
from rlkit.watch.page import answer_box, clip, page, settings_fold, tile


def sample(completion: str = "7", correct: bool = True, reason: str = "") -> SampleText:
    return SampleText(question="3 + 4", answer="7", completion=completion, correct=correct, reason=reason)


def test_a_page_is_whole_and_needs_nothing_else() -> None:
    found = page("rlkit: <mine> & more", ["<p>one</p>", "<p>two</p>"])
    assert found.startswith("<!doctype html>\n<html lang=") and found.endswith("\n</body></html>\n")
    assert "<title>rlkit: &lt;mine&gt; &amp; more</title>" in found
    assert found.count("<h1>") == 1 and "<h1>rlkit: &lt;mine&gt; &amp; more</h1><p>one</p><p>two</p>" in found
    assert "<style>" in found and "<script" not in found and "http://" not in found and "https://" not in found
    assert '<meta charset="utf-8">' in found


def test_half_a_character_is_written_out() -> None:
    found = page("half \ud83d", ["a \udc00 b"])
    assert "<title>half \\ud83d</title>" in found and "a \\udc00 b" in found
    assert found.encode("utf-8").decode("utf-8") == found


def test_tiles() -> None:
    plain = tile("a < b", "<i>7</i>", "&#177; 1")
    assert plain == '<div class="tile"><span>a &lt; b</span><b><i>7</i></b><span>&#177; 1</span></div>'
    assert tile("a", "1", "", main=True).startswith('<div class="tile main">')


@pytest.mark.parametrize(
    ("correct", "reason", "header"),
    [
        (True, "correct", "after: <b>right</b></header>"),
        (True, "", "after: <b>right</b></header>"),
        (True, "correct: by value", "after: <b>right</b> (by value)</header>"),
        (False, "wrong", "after: <b>wrong</b></header>"),
        (False, "wrong: 8 <> 7", "after: <b>wrong</b> (8 &lt;&gt; 7)</header>"),
        (False, "unparsable: no box", "after: <b>wrong</b> (unparsable: no box)</header>"),
    ],
)
def test_an_answer_and_its_verdict(correct: bool, reason: str, header: str) -> None:
    """The verdict is not said twice."""
    box = answer_box("after", sample(correct=correct, reason=reason))
    assert header in box and "<pre>7</pre>" in box
    assert ('class="answer correct"' in box) == correct and ('class="answer"' in box) != correct


def test_an_answer_is_text() -> None:
    box = answer_box("<b>", sample(completion="<script>alert(1)</script> & \x1b[31m"))
    assert "<script" not in box and "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in box
    assert "<header>&lt;b&gt;: <b>right" in box and "\x1b" not in box
    assert "<pre>(empty)</pre>" in answer_box("after", sample(completion=""))


@pytest.mark.parametrize(("length", "more"), [(0, ""), (1500, ""), (1501, "1"), (4000, "2,500")])
def test_a_long_text_says_how_much_is_left_out(length: int, more: str) -> None:
    found = clip("x" * length)
    assert found.count("x") == min(length, 1500) and (" ... (" in found) == bool(more)
    assert not more or found.endswith(f" ... ({more} more characters)")


def test_what_is_cut_is_never_half_an_entity() -> None:
    """The text is cut first and written as HTML then."""
    found = clip("&" * 1501)
    assert found.startswith("&amp;" * 1500 + " ...") and unescape(found).startswith("&" * 1500 + " ...")


def test_settings_are_behind_a_fold() -> None:
    assert settings_fold("") == ""
    found = settings_fold("reward: {fn: '<b>'}\nseed: 0\n")
    assert found.startswith("<h2>Configuration</h2><details><summary>") and found.endswith("</pre></details>")
    assert "<pre>reward: {fn: &#x27;&lt;b&gt;&#x27;}\nseed: 0\n</pre>" in found
