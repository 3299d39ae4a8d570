"""Plain texts and holes in them: the order of the pieces, the rate, the marks."""

from __future__ import annotations

from collections import Counter

import pytest

from rlkit.data.documents import FIM_MARKS, PUBLISHED_MARKS, Document, DocumentEncoder, cut, fim_marks
from rlkit.data.tokenizer import train_tokenizer

TEXT = "def add(a, b):\n    return a + b  # the sum\n"
TOKENIZER = train_tokenizer([TEXT] * 3, 300, FIM_MARKS)
DOCUMENTS = [Document(id=f"code/{i}", text=f"{TEXT}print(add({i}, 1))\n") for i in range(1000)]


def test_a_text_is_learned_whole_but_for_the_token_that_begins_it() -> None:
    [found] = DocumentEncoder(TOKENIZER, fim_rate=0.0, seed=0)(DOCUMENTS[3])
    assert TOKENIZER.decode(found.tokens) == f"<bos>{DOCUMENTS[3].text}<eos>"
    assert found.trained == ((1, len(found.tokens)),)


def test_a_hole_comes_behind_prefix_and_suffix() -> None:
    """PSM: <|fim_begin|> prefix <|fim_hole|> suffix <|fim_end|> middle <eos>; nothing of the text is lost."""
    encoder = DocumentEncoder(TOKENIZER, fim_rate=1.0, seed=0)
    shapes = Counter()
    for document in DOCUMENTS[:200]:
        [found] = encoder(document)
        text = TOKENIZER.decode(found.tokens)
        assert text.startswith("<bos><|fim_begin|>") and text.endswith("<eos>")
        prefix, rest = text.removeprefix("<bos><|fim_begin|>").split("<|fim_hole|>")
        suffix, middle = rest.removesuffix("<eos>").split("<|fim_end|>")
        assert prefix + middle + suffix == document.text
        assert found.trained == ((1, len(found.tokens)),)
        assert [found.tokens.count(mark) for mark in fim_marks(TOKENIZER)] == [1, 1, 1]
        shapes[bool(prefix), bool(middle), bool(suffix)] += 1
    assert shapes[True, True, True] > 150, "cuts fall anywhere"


def test_the_rate_is_a_share_chosen_by_seed_and_row_alone() -> None:
    def holed(rate: float, seed: int) -> set[str]:
        encoder = DocumentEncoder(TOKENIZER, fim_rate=rate, seed=seed)
        begin = fim_marks(TOKENIZER)[0]
        return {document.id for document in DOCUMENTS if begin in encoder(document)[0].tokens}

    tenth = holed(0.1, 0)
    assert 62 <= len(tenth) <= 138  # 100 +- 4 standard deviations
    assert tenth < holed(0.5, 0) and tenth != holed(0.1, 1) and holed(0.0, 0) == set()
    assert [DocumentEncoder(TOKENIZER, fim_rate=0.5, seed=0)(d) for d in DOCUMENTS[:50]] == [
        DocumentEncoder(TOKENIZER, fim_rate=0.5, seed=0)(d) for d in DOCUMENTS[:50]
    ]


def test_cuts_are_even_over_all_places() -> None:
    """Two draws from 0..3 of "abc": sorted, the sixteen pairs are equally likely."""
    counts = Counter(cut("abc", str(seed)) for seed in range(16_000))
    assert counts["", "", "abc"] == pytest.approx(1000, abs=130) and counts["", "abc", ""] == pytest.approx(
        2000, abs=180
    )
    assert len(counts) == 10 and all("".join(pieces) == "abc" for pieces in counts)


def test_words_of_special_tokens_in_a_text_stay_words() -> None:
    text = "the model ends with <eos>, and <|fim_hole|> is a hole"
    [found] = DocumentEncoder(TOKENIZER, fim_rate=0.0, seed=0)(Document(id="d", text=text))
    special = {TOKENIZER.eos_token_id, *fim_marks(TOKENIZER)}
    assert not special & set(found.tokens[1:-1])
    assert TOKENIZER.decode(found.tokens[1:-1]) == text
    assert TOKENIZER("<eos>", add_special_tokens=False)["input_ids"] == [TOKENIZER.eos_token_id], (
        "elsewhere they do not"
    )


def test_published_marks_are_known_and_missing_ones_named() -> None:
    published = train_tokenizer([TEXT], 300, PUBLISHED_MARKS)
    assert fim_marks(published) == tuple(published.convert_tokens_to_ids(list(PUBLISHED_MARKS)))
    assert PUBLISHED_MARKS[0] == "<\uff5cfim\u2581begin\uff5c>"
    with pytest.raises(ValueError, match=r"data\.fim_rate: .* has no <\|fim_begin\|>, <\|fim_hole\|>, <\|fim_end\|>"):
        DocumentEncoder(train_tokenizer([TEXT], 300), fim_rate=0.1, seed=0)
    assert DocumentEncoder(train_tokenizer([TEXT], 300), fim_rate=0.0, seed=0)(DOCUMENTS[0])
