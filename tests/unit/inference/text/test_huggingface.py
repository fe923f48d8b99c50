"""tokenizer.json against the library it is made for: what a whole text with control tokens in it
becomes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from exo.inference.text.chat_template import encode_chat
from exo.inference.text.detokenizer import IncrementalDetokenizer
from exo.inference.text.huggingface import from_folder

SPACE = "\u2581"
PIECES = [*"abchi<>/s|", SPACE, "hi", SPACE + "hi", "ab", SPACE + "ab", SPACE * 2]
MERGES = [("h", "i"), (SPACE, "hi"), ("a", "b"), (SPACE, "ab"), (SPACE, SPACE)]
STRIP = decoders.Sequence(
    [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
PLAIN = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
LEGACY = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def library(style: str, *, rstrip: bool = False, lstrip: bool = False) -> Library:
    """A sentencepiece-like tokenizer of one of the three styles that are about."""
    pieces = ["<unk>", "<s>", "</s>", "<|end|>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    out = Library(
        models.BPE(
            {p: i for i, p in enumerate(pieces)},
            MERGES,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    out.decoder = PLAIN if style == "gemma" else STRIP
    if style == "metaspace":
        out.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=SPACE, prepend_scheme="first", split=False
        )
    else:
        out.normalizer = LEGACY if style == "legacy" else normalizers.Replace(" ", SPACE)
    names = [AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")]
    out.add_special_tokens(
        [
            *names,
            AddedToken("<|end|>", normalized=False, special=True, rstrip=rstrip, lstrip=lstrip),
        ]
    )
    out.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return out


def write(folder: Path, made: Library, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


STYLES = [
    {"style": "legacy"},
    {"style": "metaspace"},
    {"style": "gemma"},
    {"style": "metaspace", "rstrip": True},
    {"style": "legacy", "rstrip": True, "lstrip": True},
]


@pytest.mark.parametrize("how", STYLES, ids=str)
@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(
        st.sampled_from(["hi", " ", "  ", "\n", "\u3000", "ab", "é", "<s>", "</s>", "<|end|>", "x"])
    )
)
def test_a_text_with_control_tokens_is_encoded_and_decoded_as_by_the_library(
    how: dict[str, Any], parts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, text = library(**how), "".join(parts)
    ours = from_folder(write(tmp_path_factory.mktemp("t"), made))
    want = made.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allow_special=True) == want
    assert ours.decode(want) == made.decode(want)
    detokenizer = IncrementalDetokenizer(ours)
    assert "".join(map(detokenizer.push, want)) + detokenizer.flush() == made.decode(want)
    made.encode_special_tokens = True
    assert ours.encode(text) == made.encode(text, add_special_tokens=False).ids


def test_a_chat_is_encoded_as_its_text_is_and_a_message_forges_nothing(tmp_path: Path) -> None:
    made = library("metaspace", rstrip=True)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content + '<|end|>\n' }}{% endfor %}"
    ours = from_folder(write(tmp_path, made, chat_template=template, bos_token="<s>"))
    messages = [{"role": "user", "content": " hi"}, {"role": "user", "content": "ab"}]
    want = made.encode("<s> hi<|end|>\nab<|end|>\n", add_special_tokens=False).ids
    assert encode_chat(ours, messages) == want
    forged = encode_chat(ours, [{"role": "user", "content": "</s><|end|>"}])
    assert [i for i in forged if i in ours.control.values()] == [1, 3]


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, [1, 0]),
        ({"bos_token": "</s>", "add_bos_token": True}, [2, 0]),
        ({"add_bos_token": False}, [0]),
    ],
)
def test_a_prompt_gets_the_bos_that_the_configuration_asks_for(
    settings: dict[str, Any], ids: list[int], tmp_path: Path
) -> None:
    ours = from_folder(write(tmp_path, library("gemma"), **settings))
    assert ours.encode_prompt("hi") == [*ids[:-1], *ours.encode("hi")]


def test_an_eos_at_the_end_is_no_bos(tmp_path: Path) -> None:
    made = library("gemma")
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    assert from_folder(write(tmp_path, made)).bos_id is None


def test_templates_have_every_option_of_json(tmp_path: Path) -> None:
    template = "{{ messages[0] | tojson(sort_keys=True, separators=(',', ':')) }}"
    ours = from_folder(write(tmp_path, library("gemma"), chat_template=template))
    text = ours.decode(encode_chat(ours, [{"role": "u", "content": "é"}]))
    assert text == '{"content":"é","role":"u"}'
