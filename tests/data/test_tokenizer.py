from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlkit.data.tokenizer import MARKS, MIN_VOCAB_SIZE, SPECIAL_TOKENS, load_tokenizer, read_decoder, train_tokenizer

TEXTS = [f"How much is {a} + {a * 7}? {a}+{a * 7}={a * 8}" for a in range(200)]
TOKENIZER = train_tokenizer(TEXTS, 300)
COMPLETION = "<think>12+34=46</think><answer>46</answer><eos>"


def encode(text: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def chat(*turns: tuple[str, str], prompt: bool = False) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    return text


@given(st.text())
def test_any_text_survives_encoding(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text


def test_no_text_needs_an_unknown_token() -> None:
    every_byte = "".join(map(chr, range(0x250))) + "\U0001f600\u4e2d"
    assert TOKENIZER.unk_token is None and TOKENIZER.decode(encode(every_byte)) == every_byte
    assert len({token for code in range(256) for token in encode(chr(code))}) >= 128


def test_digits_stand_alone_and_words_are_learnt() -> None:
    assert TOKENIZER.convert_ids_to_tokens(encode("1234")) == ["1", "2", "3", "4"]
    vocab = TOKENIZER.get_vocab()
    assert not [token for token in vocab if len(token) > 1 and any(letter.isdigit() for letter in token)]
    assert len(encode("How much is")) == 3 < len("How much is")


def test_the_vocabulary_has_the_size_asked_for_and_ids_are_dense() -> None:
    vocab = TOKENIZER.get_vocab()
    assert sorted(vocab.values()) == list(range(len(TOKENIZER)))
    assert len(TOKENIZER) <= 300
    assert len(train_tokenizer(TEXTS, 270)) == 270
    assert len(train_tokenizer([], MIN_VOCAB_SIZE)) == MIN_VOCAB_SIZE == 265
    with pytest.raises(ValueError, match=r"model\.architecture\.vocab_size=264 is too small: .* need 265"):
        train_tokenizer(TEXTS, 264)


def test_marks_are_one_token_and_stay_when_special_tokens_are_skipped() -> None:
    for mark in MARKS + SPECIAL_TOKENS:
        assert len(encode(mark)) == len(encode(f"x{mark}y")) - 2 == 1
    assert TOKENIZER.decode(encode(COMPLETION)) == COMPLETION
    assert TOKENIZER.decode(encode(COMPLETION), skip_special_tokens=True) == COMPLETION.removesuffix("<eos>")
    assert TOKENIZER.all_special_ids == [encode(token)[0] for token in SPECIAL_TOKENS]
    assert (TOKENIZER.bos_token, TOKENIZER.eos_token, TOKENIZER.pad_token) == SPECIAL_TOKENS


def test_the_template_renders_prompts_conversations_and_system_messages() -> None:
    assert chat(("user", "3 + 4"), prompt=True) == "<bos><|user|>3 + 4<|assistant|>"
    assert chat(("user", "3 + 4"), ("assistant", "<think></think><answer>7</answer>")) == (
        "<bos><|user|>3 + 4<|assistant|><think></think><answer>7</answer><eos>"
    )
    assert chat(("system", "Add."), ("user", "a"), ("assistant", "b"), ("user", "c"), prompt=True) == (
        "<bos>Add.<|user|>a<|assistant|>b<eos><|user|>c<|assistant|>"
    )
    with pytest.raises(Exception, match="role must be system, user or assistant, not tool"):
        chat(("tool", "x"))


def test_a_conversation_extends_its_prompt_token_by_token() -> None:
    question = ("user", "3 + 4")
    answer = COMPLETION.removesuffix("<eos>")
    assert encode(chat(question, ("assistant", answer))) == encode(chat(question, prompt=True)) + encode(COMPLETION)


def test_a_saved_tokenizer_loads_with_the_same_ids(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    letters = random.Random(0)
    for _ in range(200):
        text = "".join(letters.choice("0123 +=-\nHow<>|/\u00e9x\u4e2d") for _ in range(40)) + letters.choice(MARKS)
        assert encode(text, loaded) == encode(text) and loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert loaded.decode(encode(text)) == text
    assert loaded.chat_template == TOKENIZER.chat_template
    assert loaded.all_special_ids == TOKENIZER.all_special_ids
    loaded.save_pretrained(tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert {"tokenizer.json", "chat_template.jinja"} <= set(names)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_training_is_deterministic() -> None:
    once, again = (train_tokenizer(iter(TEXTS), 300).backend_tokenizer.to_str() for _ in range(2))
    assert once == again == TOKENIZER.backend_tokenizer.to_str()


def without_marks() -> PreTrainedTokenizerFast:
    """Another model's tokenizer: byte-level BPE to which <think> and <answer> are text like any other."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    template = "{%- for message in messages -%}{{- message.content -}}{%- endfor -%}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=template)


def test_marks_may_be_plain_text(tmp_path: Path) -> None:
    without_marks().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    completion = COMPLETION.removesuffix("<eos>")
    ids = loaded(f"{completion}<end>", add_special_tokens=False)["input_ids"]
    assert loaded.decode(ids, skip_special_tokens=True) == completion
    assert len(loaded("<think>", add_special_tokens=False)["input_ids"]) > 1


def test_our_own_tokenizer_loads(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == TOKENIZER.get_vocab()
    ids = encode(COMPLETION)
    assert read_decoder(tmp_path)(ids) == TOKENIZER.decode(ids, skip_special_tokens=True) != TOKENIZER.decode(ids)


def test_tokenizers_that_will_not_do(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"half: there is no tokenizer\.json, with which engines decode; load the"):
        load_tokenizer(tmp_path / "half")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"its tokenizer cannot be read; load the model's tokenizer"):
        load_tokenizer(tmp_path / "broken")
    for missing, words in (("chat_template", "has no chat template; add"), ("eos_token", "has no end token; set eos")):
        tokenizer = without_marks()
        setattr(tokenizer, missing, None)
        tokenizer.save_pretrained(tmp_path / missing)
        with pytest.raises(ValueError, match=words):
            load_tokenizer(tmp_path / missing)
    tokenizer = without_marks()
    tokenizer.add_tokens([AddedToken("</think>", special=True)], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "special")
    with pytest.raises(ValueError, match='drops </think> when it decodes; if it is a special token, give it "special"'):
        load_tokenizer(tmp_path / "special")
