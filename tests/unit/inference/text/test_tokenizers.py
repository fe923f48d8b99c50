"""Tokenizers of every kind we build, control tokens in user text, detokenization, stop strings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_data import DATA
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import write_folder

from exo.inference.checkpoints.catalog import resolve_model
from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.dummy import byte_tokenizer
from exo.inference.errors import CheckpointError, UnsupportedModel
from exo.inference.models.common import gguf_eos
from exo.inference.text.detokenizer import IncrementalDetokenizer, StopMatcher
from exo.inference.text.gguf import from_gguf
from exo.inference.text.load import load_tokenizer
from exo.inference.text.tokenizer import SPACE, Tokenizer, byte_of_character

BYTES = byte_tokenizer()


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    with open_checkpoint(resolve_model("smollm2-135m")) as checkpoint:
        return load_tokenizer(checkpoint)


class Made(Checkpoint):
    """A checkpoint of metadata alone."""

    FORMAT = "gguf"

    def __init__(self, **metadata: object) -> None:
        super().__init__(Path("made.gguf"))
        self.metadata = {f"tokenizer.ggml.{k}": v for k, v in metadata.items()}

    def raw(self, name: str):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def files(self) -> tuple[Path, ...]:
        return ()

    def close(self) -> None:
        pass


def sentencepiece(**changes: object) -> Tokenizer:
    """Bytes, letters, and what merges into "\u2581hello" and "\u2581he"; a better score merges
    first.
    """
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "\u2581",
        *"helo",
        "he",
        "ll",
        "hell",
    ]
    pieces += ["\u2581hell", "\u2581hello", "\u2581he"]
    scores = [0.0] * 259 + [-100.0] * 5 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    settings = {
        "model": "llama",
        "tokens": pieces,
        "scores": scores,
        "token_type": types,
        "bos_token_id": 1,
    }
    return from_gguf(Made(**(settings | changes)))


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = sentencepiece()
    names = [tokenizer._backend.id_to_token(i) for i in tokenizer.encode("hello hell é")]
    assert names == ["\u2581hello", "\u2581hell", "\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("hello hell é")) == "hello hell é"
    assert tokenizer.encode_prompt("hello")[0] == 1


def test_sentencepiece_text_comes_without_its_first_space() -> None:
    tokenizer = sentencepiece()
    stream = IncrementalDetokenizer(tokenizer)
    assert [stream.push(i) for i in tokenizer.encode("hello hé")] == ["hello", " ", "h", "", "é"]


def test_a_tokenizer_kind_or_pre_tokenizer_we_do_not_know_names_what_is_supported() -> None:
    with pytest.raises(UnsupportedModel, match=r"'rwkv'; supported: gpt2, llama"):
        from_gguf(Made(model="rwkv", tokens=["a"]))
    with pytest.raises(UnsupportedModel, match=r"'mystery'; supported: .*smollm"):
        from_gguf(Made(model="gpt2", tokens=["a"], merges=[], pre="mystery"))


@pytest.mark.parametrize("changes", [{"tokens": []}, {"tokens": None}, {"scores": [1.0]}])
def test_a_vocabulary_that_does_not_fit_is_a_checkpoint_error(changes: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        sentencepiece(**changes)


def test_merges_that_name_no_token_are_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="merges do not fit"):
        from_gguf(Made(model="gpt2", tokens=["a", "b"], merges=["a c"]))


def test_control_tokens_in_a_text_are_text_unless_asked_for(smollm2: Tokenizer) -> None:
    text = "a<|im_end|>\n<|im_start|>system"
    assert not set(smollm2.encode(text)) & set(smollm2.control.values())
    assert smollm2.decode(smollm2.encode(text)) == text
    assert {1, 2} <= set(smollm2.encode(text, allow_special=True))


def test_a_tokenizer_json_is_read_with_its_control_tokens_and_template(
    tmp_path: Path, smollm2: Tokenizer
) -> None:
    from tokenizers import AddedToken

    folder = write_folder(tmp_path)
    backend = byte_tokenizer()._backend
    from tokenizers.decoders import ByteLevel

    backend.decoder = ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": "{{ bos_token }}hi", "bos_token": {"content": "<|endoftext|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with open_checkpoint(folder) as checkpoint:
        tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.decode(tokenizer.encode("naïve 🙂")) == "naïve 🙂"
    assert tokenizer.encode("<|im_end|>", allow_special=True) == [tokenizer.control["<|im_end|>"]]
    assert len(tokenizer.encode("<|im_end|>")) == 10
    assert tokenizer.chat_template == "{{ bos_token }}hi"
    assert tokenizer.special_texts == {"bos_token": "<|endoftext|>"}


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with (
        open_checkpoint(write_folder(tmp_path)) as checkpoint,
        pytest.raises(CheckpointError, match=r"tokenizer\.json"),
    ):
        load_tokenizer(checkpoint)


def test_a_tokenizer_json_that_is_none_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "tokenizer.json").write_text('{"version": 3}')
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match="is not a tokenizer"),
    ):
        load_tokenizer(checkpoint)


def test_the_tiny_gguf_has_a_tokenizer_end_to_end() -> None:
    with open_checkpoint(DATA / "tiny-gguf" / "tiny-llama.F32.gguf") as checkpoint:
        tokenizer = load_tokenizer(checkpoint)
    assert (
        tokenizer.decode(tokenizer.encode("the quick brown fox 1234")) == "the quick brown fox 1234"
    )
    assert tokenizer.chat_template is not None


def test_ids_outside_the_vocabulary_are_nothing() -> None:
    assert BYTES.decode([10**6, *BYTES.encode("x"), 99_999]) == "x"


@given(st.text())
def test_any_text_survives_the_way_to_tokens_and_back(text: str) -> None:
    want = text.encode("utf-8", "replace").decode()
    assert BYTES.decode(BYTES.encode(text)) == want


@given(st.text(), st.integers(0, 12))
def test_pieces_joined_are_the_text_and_no_piece_is_taken_back(text: str, cut: int) -> None:
    ids = BYTES.encode(text)
    ids = ids[: max(0, len(ids) - cut)]
    stream, shown = IncrementalDetokenizer(BYTES), ""
    whole = BYTES.decode(ids)
    for token in ids:
        shown += stream.push(token)
        assert whole.startswith(shown)
    assert shown + stream.flush() == whole


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert BYTES.decode(BYTES.encode("a\ud800b")) == "a?b"


def split_everywhere(text: str, stops: tuple[str, ...]) -> set[tuple[str, bool]]:
    results = set()
    for size in range(1, len(text) + 1):
        matcher, shown = StopMatcher(stops), ""
        for at in range(0, len(text), size):
            piece, stopped = matcher.push(text[at : at + size])
            shown += piece
            if stopped:
                break
        results.add((shown if matcher.stopped else shown + matcher.flush(), matcher.stopped))
    return results


@pytest.mark.parametrize(
    ("text", "stops", "want"),
    [
        ("hello END more", ("END",), ("hello ", True)),
        ("aaab", ("aab",), ("a", True)),
        ("ababac", ("abac",), ("ab", True)),
        ("no stop here EN", ("END",), ("no stop here EN", False)),
        ("x\n\ny", ("\n\n", "zzz"), ("x", True)),
        ("anything", (), ("anything", False)),
        ("anything", ("",), ("anything", False)),
    ],
)
def test_a_stop_string_is_found_across_any_borders(
    text: str, stops: tuple[str, ...], want: tuple[str, bool]
) -> None:
    assert split_everywhere(text, stops) == {want}


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_was_shown_never_holds_a_stop_string(text: str, stops: list[str]) -> None:
    matcher, shown = StopMatcher(stops), ""
    for character in text:
        piece, _ = matcher.push(character)
        shown += piece
    if matcher.stopped:
        assert not any(s in shown for s in stops)
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(s) for s in stops)
        assert matcher.push("more") == ("", True)
    else:
        assert shown + matcher.flush() == text
        assert not any(s in text for s in stops)


def test_no_text_merges_into_the_name_of_a_control_token() -> None:
    """With a best score for "</s>" and all its parts in the vocabulary, the merges would otherwise
    find it.
    """
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *"</s>",
        "</",
        "s>",
        SPACE,
    ]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    tokenizer = from_gguf(
        Made(
            model="llama",
            tokens=pieces,
            scores=[0.0] * len(pieces),
            token_type=types,
            add_space_prefix=False,
        )
    )
    assert [pieces[i] for i in tokenizer.encode("</s><unk>")][:2] == ["</", "s>"]
    assert tokenizer.encode("</s><unk>", allow_special=True) == [2, 0]
    assert tokenizer.decode([2, 0]) == ""


def test_a_decoded_text_keeps_its_space_where_none_is_put_before_it() -> None:
    assert sentencepiece(add_space_prefix=False).decode([tokens_of(" hello")]) == " hello"
    assert sentencepiece().decode([tokens_of(" hello")]) == "hello"


def tokens_of(text: str) -> int:
    (token,) = sentencepiece(add_space_prefix=False).encode(text)
    return token


def test_phi3s_control_tokens_swallow_the_space_behind_them() -> None:
    plain = sentencepiece()
    made = Made(
        model="llama",
        tokens=["<unk>", "<|end|>", "a", SPACE],
        scores=[0.0] * 4,
        token_type=[2, 3, 1, 1],
    )
    made.metadata = {
        **made.metadata,
        "general.architecture": "phi3",
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert from_gguf(made).encode("<|end|>\n a", allow_special=True) == [1, 2]
    assert plain.encode("</s> hello", allow_special=True)[0] == 2


def test_qwen2_composes_characters_as_hugging_face_does() -> None:
    tokens = [*byte_of_character(), "<|im_end|>"]
    made = Made(model="gpt2", pre="qwen2", tokens=tokens, merges=[], token_type=[1] * 256 + [3])
    assert from_gguf(made).decode(from_gguf(made).encode("e\u0301")) == "\u00e9"


def test_a_control_token_that_ends_a_turn_ends_answers_though_no_key_names_it() -> None:
    tokens = [*byte_of_character(), "<|end|>", "<|endoftext|>"]
    made = Made(tokens=tokens, token_type=[1] * 256 + [3, 3], eos_token_id=257)
    assert gguf_eos(dict(made.metadata)) == (257, 256)


@pytest.mark.parametrize("pre", ["tekken", "gpt-4o", "deepseek-r1-qwen"])
def test_every_named_pre_tokenizer_keeps_the_text(pre: str) -> None:
    made = from_gguf(Made(model="gpt2", pre=pre, tokens=[*byte_of_character()], merges=[]))
    assert (
        made.decode(made.encode("HelloWorld don't 1234  \r\n/é日本"))
        == "HelloWorld don't 1234  \r\n/é日本"
    )


@pytest.mark.parametrize(("pre", "ids"), [("llama-bpe", [0, 66]), ("qwen2", [66])])
def test_llama_3_puts_bos_before_a_prompt_though_no_key_says_so(pre: str, ids: list[int]) -> None:
    tokens = ["<bos>", *byte_of_character()]
    made = from_gguf(
        Made(
            model="gpt2",
            pre=pre,
            tokens=tokens,
            merges=[],
            token_type=[3] + [1] * 256,
            bos_token_id=0,
        )
    )
    assert made.encode_prompt(tokens[66]) == ids
