from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlkit.data.tokenizer import (
    MARKS,
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    copy_tokenizer,
    load_tokenizer,
    read_decoder,
    save_tokenizer,
    train_tokenizer,
)
from tests.hf_folders import make, save

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


CLASSES = ["LlamaTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer", "T5TokenizerFast", "GemmaTokenizer", "NoSuchClass"]
HARD = "12 + 34 - 5\nHow are you?\n\n\tdef f(x):\n    return x  # \u00e9\u4e2d \U0001f600"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "deepseek"])
@pytest.mark.parametrize("name", CLASSES)
def test_tokenizer_json_is_the_truth_whatever_the_class_beside_it(name: str, kind: str, tmp_path: Path) -> None:
    """A byte-level tokenizer.json under the name of Llama's class lost all spaces and line breaks without a word."""
    folder = save(make(kind), tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": name}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded, decode = load_tokenizer(folder), read_decoder(folder)
    ids = encode(HARD, loaded)
    assert ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(HARD).ids
    assert loaded.decode(ids) == decode(ids) == HARD
    assert loaded.eos_token_id == 1 and loaded.chat_template


def as_llama_2_has_it() -> Tokenizer:
    """Blanks are written as U+2581, one stands in front of a text, and what is not in the vocabulary is bytes."""
    words = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    blanks, strip = decoders.Replace("\u2581", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def with_a_blank_in_front() -> Tokenizer:
    tokenizer = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@pytest.mark.parametrize("make_backend", [as_llama_2_has_it, with_a_blank_in_front])
def test_tokenizers_that_write_blanks_in_their_own_way_load(
    make_backend: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    made = PreTrainedTokenizerFast(tokenizer_object=make_backend(), eos_token="<eos>", chat_template="{{ messages }}")
    made.save_pretrained(tmp_path)
    ids = encode(HARD, load_tokenizer(tmp_path))
    assert read_decoder(tmp_path)(ids).removeprefix(" ") == HARD


def lossy(change: Callable[[Tokenizer], object]) -> PreTrainedTokenizerFast:
    """Our own tokenizer with something in it that loses a part of a text."""
    tokenizer = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    change(tokenizer)
    names = {"eos_token": "<eos>", "bos_token": "<bos>", "chat_template": TOKENIZER.chat_template}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def drop_spaces(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "")


def drop_lines(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace("\n", " ")


def small_letters(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def runs_of_blanks(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace(Regex(" +"), " ")


def no_decoder(tokenizer: Tokenizer) -> None:
    tokenizer.decoder = decoders.WordPiece()


@pytest.mark.parametrize("change", [drop_spaces, drop_lines, small_letters, runs_of_blanks, no_decoder])
def test_a_tokenizer_from_which_text_does_not_come_back_is_refused(
    change: Callable[[Tokenizer], object], tmp_path: Path
) -> None:
    lossy(change).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its tokenizer does not give text back: '.*' comes back as '.*'; use the"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("token", ["<think>", "</answer>", " + ", "return"])
def test_tokens_that_engines_do_not_know_are_refused(token: str, tmp_path: Path) -> None:
    """tokenizer_config.json adds a token to those of tokenizer.json, which is all that decodes."""
    without_marks().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    added = {"300": {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": added}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json adds to what tokenizer\.json says: '.*' is \["):
        load_tokenizer(tmp_path)


def test_a_new_tokenizer_is_saved_under_a_name_that_transformers_4_knows(tmp_path: Path) -> None:
    save_tokenizer(TOKENIZER, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (
        encode(HARD, AutoTokenizer.from_pretrained(tmp_path)) == encode(HARD) == encode(HARD, load_tokenizer(tmp_path))
    )


def test_an_export_has_the_files_of_its_base_byte_for_byte(tmp_path: Path) -> None:
    base, export = tmp_path / "base", tmp_path / "export"
    TOKENIZER.save_pretrained(base)
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"):
        (base / name).write_bytes(name.encode() + b"\x00\xff")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    for name in ("README.md", "model.safetensors", "config.json", "pytorch_model.bin"):
        (base / name).write_text("not a tokenizer's")
    export.mkdir()
    (export / "tokenizer.json").write_text("{}")
    copy_tokenizer(base, export)
    for file in base.rglob("*"):
        if file.is_file():
            other = export / file.relative_to(base)
            assert other.exists() == (file.read_bytes() != b"not a tokenizer's"), file
            assert not other.exists() or other.read_bytes() == file.read_bytes()


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
