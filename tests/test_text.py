"""The tokenizer, the incremental detokeniser against one ``decode`` of everything, stop strings against a search."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ouroboros
from ouroboros.errors import InputError, LoadError
from ouroboros.text import IncrementalDetokenizer, StopStrings, TextStream, Tokenizer

EMBEDDED = Path(ouroboros.__file__).parent / "embedded" / "target"
EOS = 0
VOCABULARY = 8192
TEXTS = [
    "def f(x):\n    return x\n",
    "naïve café",
    "数学は楽しい、本当に。",
    "a🙂b👩‍👩‍👧‍👦c🇫🇷",
    "\ufffd",
    "x\ufffd\ufffdy",
    "\t\r\n \x00",
]


@functools.cache
def byte_level() -> Tokenizer:
    found = Tokenizer.from_directory(EMBEDDED)
    assert found is not None
    return found


@functools.cache
def byte_tokens() -> dict[int, int]:
    """The id of each single byte that the vocabulary has, which lets a test build any bytes it likes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(rest)}
    vocabulary = transformers_tokenizer(byte_level()).get_vocab()
    return {byte: vocabulary[letter] for byte, letter in letters.items() if letter in vocabulary}


def transformers_tokenizer(tokenizer: Tokenizer) -> Any:
    return tokenizer.hf


@functools.cache
def sentencepiece_like() -> Tokenizer:
    """A llama-2 kind of tokenizer: ▁ for a space, one stripped at the beginning of a text, bytes as a fallback."""
    from tokenizers import AddedToken, decoders, normalizers
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh.", "▁a", "▁b", "▁c"]
    model = BPE(
        vocab={name: n for n, name in enumerate(names)},
        merges=[("▁", "a"), ("▁", "b"), ("▁", "c")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    rust = RustTokenizer(model)
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rust.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    generic: Any = PreTrainedTokenizerFast
    return Tokenizer.wrap(generic(tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>"))


def pieces_of(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    stream = IncrementalDetokenizer(tokenizer, prompt or [])
    return [*(stream.push(token) for token in ids), stream.flush()]


# ------------------------------------------------------------------------------------------------------ tokenizer


def test_a_directory_without_tokenizer_files_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert Tokenizer.from_directory(tmp_path) is None
    with pytest.raises(LoadError, match="has none"):
        Tokenizer.wrap(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_broken_files_are_a_load_error_of_one_line(tmp_path: Path, name: str) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "pair", ignore=shutil.ignore_patterns("*.safetensors"))
    if name == "vocab.json":
        (tmp_path / "pair" / "tokenizer.json").unlink()
    (tmp_path / "pair" / name).write_text("{")
    with pytest.raises(LoadError) as caught:
        Tokenizer.from_directory(tmp_path / "pair")
    assert str(tmp_path / "pair") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_directory_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="nowhere"):
        Tokenizer.from_directory(tmp_path / "nowhere")


def test_wrap_takes_a_path_an_object_or_a_tokenizer() -> None:
    tokenizer = Tokenizer.wrap(EMBEDDED)
    assert Tokenizer.wrap(tokenizer) is tokenizer
    assert Tokenizer.wrap(transformers_tokenizer(tokenizer)).encode("hello") == tokenizer.encode("hello")
    with pytest.raises(InputError, match="int"):
        Tokenizer.wrap(3)


def test_the_short_way_to_the_generic_class_reads_what_auto_tokenizer_reads() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(EMBEDDED), local_files_only=True)
    assert type(transformers_tokenizer(byte_level())) is type(theirs)
    assert theirs.get_vocab() == transformers_tokenizer(byte_level()).get_vocab()
    for text in TEXTS:
        assert byte_level().encode(text) == theirs.encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_are_inverse_for_byte_level(text: str) -> None:
    assert byte_level().decode(byte_level().encode(text)) == text


def test_encode_adds_the_default_special_tokens_and_decode_skips_them() -> None:
    from tokenizers.processors import TemplateProcessing

    hf = transformers_tokenizer(Tokenizer.wrap(EMBEDDED))
    hf.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
    )
    tokenizer = Tokenizer.wrap(hf)
    assert tokenizer.encode("hello") == [EOS, *byte_level().encode("hello")]
    assert tokenizer.decode([EOS, *byte_level().encode("hello"), EOS]) == "hello"


def test_ids_beyond_the_vocabulary_decode_to_nothing() -> None:
    hello = byte_level().encode("hello")
    assert byte_level().decode([VOCABULARY, *hello, VOCABULARY + 7]) == "hello"
    assert byte_level().decode([]) == ""


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match="udc80"):
        byte_level().encode("a\udc80")


def test_sizes_and_ids() -> None:
    assert byte_level().vocab_size == VOCABULARY
    assert byte_level().eos_token_id == EOS
    assert byte_level().is_silent(EOS)
    assert byte_level().is_silent(VOCABULARY)
    assert not byte_level().is_silent(1)


def test_the_fingerprint_is_of_the_vocabulary_alone(tmp_path: Path) -> None:
    draft = Tokenizer.from_directory(EMBEDDED.parent / "draft")
    assert draft is not None
    assert draft.fingerprint == byte_level().fingerprint
    assert len(draft.fingerprint) == 64

    files = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = files["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(files), encoding="utf-8")
    swapped = Tokenizer.from_directory(tmp_path)
    assert swapped is not None
    assert swapped.fingerprint != byte_level().fingerprint


def test_a_chat_template_adds_its_own_special_tokens_and_opens_the_answer() -> None:
    hf = transformers_tokenizer(Tokenizer.wrap(EMBEDDED))
    hf.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'pirate' %}{{ raise_exception('no pirates') }}{% endif %}"
        "<|endoftext|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = Tokenizer.wrap(hf)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    assert ids == [EOS, *tokenizer.encode("user: hello\nassistant:")]
    with pytest.raises(InputError, match="no pirates"):
        tokenizer.apply_chat_template([{"role": "pirate", "content": "arr"}])


def test_no_chat_template_is_an_input_error() -> None:
    found = Tokenizer.from_directory(EMBEDDED)
    assert found is not None
    found.hf.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        found.apply_chat_template([{"role": "user", "content": "hello"}])


def test_importing_this_file_imports_neither_transformers_nor_torch() -> None:
    code = "import sys, ouroboros.text; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------- detokeniser


@pytest.mark.parametrize("text", TEXTS)
def test_every_character_comes_whole(text: str) -> None:
    by_bytes = [byte_tokens()[byte] for byte in text.encode() if byte in byte_tokens()]
    for ids in (byte_level().encode(text), by_bytes):
        pieces = pieces_of(byte_level(), ids)
        assert "".join(pieces) == byte_level().decode(ids)


def test_an_emoji_comes_with_its_last_byte() -> None:
    ids = [byte_tokens()[byte] for byte in "🙂!".encode()]
    assert pieces_of(byte_level(), ids) == ["", "", "", "🙂", "!", ""]


def test_half_a_character_is_held_back_and_flushed_at_the_end() -> None:
    ids = [byte_tokens()[byte] for byte in "a🙂".encode()[:-1]]
    assert pieces_of(byte_level(), ids) == ["a", "", "", "", "\ufffd"]


def test_a_special_token_inside_a_character_leaves_no_trace() -> None:
    first, second, third = (byte_tokens()[byte] for byte in "€".encode())
    ids = [first, EOS, second, VOCABULARY + 1, third]
    assert pieces_of(byte_level(), ids) == ["", "", "", "", "€", ""]


ANY_ID = st.integers(0, VOCABULARY + 3)
SINGLE_BYTE = st.integers(0, 255).map(lambda byte: byte_tokens().get(byte, 1))
CONTINUATION = st.integers(0x80, 0xBF).map(lambda byte: byte_tokens().get(byte, 1))
SPLIT_TEXT = st.text(min_size=1, max_size=4).flatmap(
    lambda text: st.just([byte_tokens()[byte] for byte in text.encode() if byte in byte_tokens()])
)
IDS = st.lists(
    st.one_of(
        ANY_ID.map(lambda n: [n]), SINGLE_BYTE.map(lambda n: [n]), CONTINUATION.map(lambda n: [n] * 7), SPLIT_TEXT
    ),
    max_size=40,
).map(lambda parts: [token for part in parts for token in part])


@settings(max_examples=300, deadline=None)
@given(prompt=IDS, ids=IDS)
def test_pieces_joined_are_the_decoded_text(prompt: list[int], ids: list[int]) -> None:
    """The slow twin is one ``decode`` of everything; the prompt may end anywhere, even inside a character."""
    assert "".join(pieces_of(byte_level(), ids, prompt)) == byte_level().decode(ids)


@settings(max_examples=100, deadline=None)
@given(ids=IDS)
def test_what_is_out_is_never_taken_back(ids: list[int]) -> None:
    stream = IncrementalDetokenizer(byte_level(), [])
    shown = ""
    for n, token in enumerate(ids, 1):
        shown += stream.push(token)
        sofar = byte_level().decode(ids[:n])
        assert sofar.startswith(shown)
        assert set(sofar[len(shown) :]) <= {"\ufffd"}


@pytest.mark.parametrize("byte", [0x80, 0xE2, 0xFF, 0x61])
def test_the_window_stays_short_whatever_comes(byte: int) -> None:
    stream = IncrementalDetokenizer(byte_level(), [])
    token = byte_tokens()[byte]
    text = ""
    for _ in range(300):
        text += stream.push(token)
        assert len(stream._window) <= 16
    assert text + stream.flush() == byte_level().decode([token] * 300)


def test_special_tokens_do_not_fill_the_window() -> None:
    stream = IncrementalDetokenizer(byte_level(), [])
    assert [stream.push(EOS) for _ in range(100)] == [""] * 100
    assert not stream._window


SP_TEXT = st.text(alphabet="abc. é€🙂", min_size=1, max_size=12).filter(lambda text: not text.startswith(" "))


@settings(max_examples=200, deadline=None)
@given(prompt=SP_TEXT, text=st.text(alphabet="abc. é€🙂", max_size=20))
def test_behind_a_prompt_a_sentencepiece_text_keeps_its_leading_space(prompt: str, text: str) -> None:
    ids = sentencepiece_like().encode(prompt + text)
    for cut in range(1, len(ids)):
        begin = sentencepiece_like().decode(ids[:cut])
        if begin.endswith("\ufffd") or not begin:
            continue
        assert begin + "".join(pieces_of(sentencepiece_like(), ids[cut:], ids[:cut])) == prompt + text


def test_a_sentencepiece_answer_behind_a_special_token_begins_without_a_space() -> None:
    tokenizer = sentencepiece_like()
    answer = tokenizer.encode("a b")
    bos = tokenizer.encode("<s>")[-1]
    assert "".join(pieces_of(tokenizer, answer, [bos])) == "a b"
    assert "".join(pieces_of(tokenizer, answer, [*tokenizer.encode("c"), bos])) == "a b"
    assert "".join(pieces_of(tokenizer, answer, tokenizer.encode("c"))) == " a b"


def test_bytes_of_a_fallback_vocabulary_come_as_one_character() -> None:
    tokenizer = sentencepiece_like()
    vocabulary = transformers_tokenizer(tokenizer).get_vocab()
    ids = [vocabulary[f"<0x{byte:02X}>"] for byte in "🙂€".encode()]
    assert [piece for piece in pieces_of(tokenizer, ids, tokenizer.encode("a")) if piece] == ["🙂", "€"]


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 274), max_size=60))
def test_a_fallback_vocabulary_never_fails_and_keeps_its_window_short(ids: list[int]) -> None:
    stream = IncrementalDetokenizer(sentencepiece_like(), [])
    for token in ids:
        stream.push(token)
        assert len(stream._window) <= 20
    stream.flush()


# --------------------------------------------------------------------------------------------------- stop strings


def naive_stop(pieces: list[str], stops: list[str]) -> tuple[str, int | None]:
    """The text before the earliest stop string, once the text so far holds one, and how many pieces that took."""
    text = ""
    for n, piece in enumerate(pieces, 1):
        text += piece
        places = [text.index(stop) for stop in stops if stop in text]
        if places:
            return text[: min(places)], n
    return text, None


def run_stops(pieces: list[str], stops: list[str]) -> tuple[str, int | None]:
    matcher = StopStrings(stops)
    shown = ""
    for n, piece in enumerate(pieces, 1):
        text, hit = matcher.push(piece)
        shown += text
        if hit:
            assert matcher.flush() == ""
            return shown, n
    return shown + matcher.flush(), None


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["ab", "cd"], [], ("abcd", None)),
        (["hello wor", "ld"], ["o w"], ("hell", 1)),
        (["hello", " ", "world"], ["o w"], ("hell", 3)),
        (["a", "a", "a", "b"], ["aab"], ("a", 4)),
        (["x", "ab", "abc"], ["ababc"], ("x", 3)),
        (["xab"], ["ab", "abc"], ("x", 1)),
        (["xabc"], ["abc", "ab"], ("x", 1)),
        (["xa", "bx"], ["abc", "bx"], ("xa", 2)),
        (["a", "abd"], ["abc", "b"], ("aa", 2)),
        (["xabcd"], ["cd", "bc"], ("xa", 1)),
        (["ends with a", "b"], ["abc"], ("ends with ab", None)),
        (["", "", "\n", "\n"], ["\n\n"], ("", 4)),
        (["日", "本", "語"], ["本語"], ("日", 3)),
    ],
)
def test_stop_strings_by_hand(pieces: list[str], stops: list[str], expected: tuple[str, int | None]) -> None:
    assert run_stops(pieces, stops) == expected


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=3),
)
def test_stop_strings_equal_a_search_of_the_text_so_far(pieces: list[str], stops: list[str]) -> None:
    assert run_stops(pieces, stops) == naive_stop(pieces, stops)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="ab", max_size=3), max_size=12),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_text_is_held_back_only_where_a_stop_string_may_begin(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    shown = seen = ""
    for piece in pieces:
        seen += piece
        text, hit = matcher.push(piece)
        shown += text
        if hit:
            return
        held = seen[len(shown) :]
        assert shown + held == seen
        assert not held or any(stop.startswith(held) for stop in stops)


# ------------------------------------------------------------------------------------------------- the two together


def run_stream(ids: list[int], stops: list[str]) -> tuple[str, int | None]:
    stream = TextStream(byte_level(), [], stops)
    text = ""
    for n, token in enumerate(ids, 1):
        piece, stopped = stream.push(token)
        text += piece
        if stopped:
            return text + stream.finish(), n
    return text + stream.finish(), None


def test_a_stop_string_spans_tokens_and_split_characters() -> None:
    ids = [byte_tokens()[byte] for byte in "ab🙂cd".encode()]
    assert run_stream(ids, ["b🙂c"]) == ("a", 7)
    assert run_stream(ids, ["🙂"]) == ("ab", 6)
    assert run_stream(ids, ["🙂x"]) == ("ab🙂cd", None)


def test_a_stop_string_that_completes_in_the_flush_cuts_the_text() -> None:
    ids = [byte_tokens()[byte] for byte in b"ab\xe2"]
    assert run_stream(ids, ["b\ufffd"]) == ("a", None)


def test_without_a_tokenizer_every_text_is_empty() -> None:
    stream = TextStream(None, [1, 2], ())
    assert stream.push(3) == ("", False)
    assert stream.finish() == ""


@settings(max_examples=100, deadline=None)
@given(ids=IDS)
def test_without_stops_the_stream_is_the_decoded_text(ids: list[int]) -> None:
    assert run_stream(ids, []) == (byte_level().decode(ids), None)
