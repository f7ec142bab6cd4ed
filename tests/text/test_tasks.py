"""Tasks: which a model has, what goes before its prompts, and the languages of a translation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers

from hfpipe import models
from hfpipe.errors import UnsupportedOption, UsageError
from hfpipe.generator import open_generator
from hfpipe.text.tasks import PromptEncoder, for_task
from hfpipe.text.tokenizer import Tokenizer, from_transformers, load_tokenizer
from hfpipe.types import LoadOptions, ModelSource
from tests import tiny
from tests.recorder import Recorder

TEXT = "The quick brown fox"


@pytest.fixture
def asked(tiny_seq2seq) -> Callable[..., ModelSource]:
    """A model of a kind with the options of loading."""
    return lambda kind, **options: for_task(models.resolve(str(tiny_seq2seq(kind))), LoadOptions(**options))


def encoder(source: ModelSource) -> PromptEncoder:
    return PromptEncoder(load_tokenizer(source.folder), source)


DE = {"source_lang": "en", "target_lang": "de"}


@pytest.mark.parametrize(
    ("kind", "options", "name", "prefix"),
    [
        ("t5", {}, "text2text-generation", ""),
        ("t5", {"task": "summarization"}, "summarization", "summarize: "),
        ("t5", {"task": "translation_en_to_de"}, "translation", "translate English to German: "),
        ("t5", {"task": "translation", **DE}, "translation", "translate English to German: "),
        ("t5", DE, "translation", "translate English to German: "),
        ("bart", {}, "text2text-generation", ""),
        ("bart", {"task": "summarization"}, "summarization", ""),
        ("pegasus", {}, "summarization", ""),
        ("pegasus", {"task": "text2text-generation"}, "text2text-generation", ""),
        ("marian", {}, "translation", ""),
        ("m2m_100", {}, "translation", ""),
    ],
)
def test_the_task_and_what_goes_before_a_prompt(asked, kind, options, name, prefix):
    source = asked(kind, **options)
    assert (source.task.name, source.task.prefix) == (name, prefix)
    if kind != "m2m_100":
        tokenizer = load_tokenizer(source.folder)
        assert encoder(source).encode(TEXT, True) == tokenizer.encode(prefix + TEXT, True)


def test_a_model_of_one_task_does_that(tiny_seq2seq, tmp_path):
    """As facebook/bart-large-cnn says it in its config.json."""
    folder = shutil.copytree(tiny_seq2seq("bart"), tmp_path / "bart")
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {"summarization": {"max_length": 20, "min_length": 5}}
    (folder / "config.json").write_text(json.dumps(config))
    source = for_task(models.resolve(str(folder)), LoadOptions())
    assert source.task.name == "summarization"
    assert source.generation_config["min_length"] == 5
    # Less the token that its decoder starts with.
    assert source.generation_config["max_new_tokens"] == 19
    with pytest.raises(UnsupportedOption, match="cannot do task translation") as raised:
        for_task(models.resolve(str(folder)), LoadOptions(task="translation"))
    assert raised.value.hint == "It can do text2text-generation, summarization."


@pytest.mark.parametrize(
    ("kind", "options", "message", "hint"),
    [
        ("t5", {"task": "text-generation"}, "cannot do task text-generation", "It can do text2text-generation, su"),
        ("marian", {"task": "summarization"}, "cannot do task summarization", "It can do translation, text2text-g"),
        ("pegasus", {"task": "translation"}, "cannot do task translation", "It can do summarization, text2text-g"),
        ("t5", {"task": "translation"}, "needs both languages of a translation", "en to de"),
        ("t5", {"task": "translation", "target_lang": "de"}, "needs both languages of a translation", "en to de"),
        ("t5", {"task": "translation_en_to_fr"}, "does not translate from en to fr", "en to de"),
        ("t5", {"task": "translation_en_to_de", "target_lang": "fr"}, "contradict each other", None),
    ],
)
def test_a_task_that_a_model_does_not_have(asked, kind, options, message, hint):
    with pytest.raises(UsageError, match=message) as raised:
        asked(kind, **options)
    assert hint is None or hint in raised.value.hint


@pytest.mark.parametrize("task", ["summarization", "translation", "text2text-generation"])
def test_a_decoder_only_model_generates_text(tiny_gpt2, task):
    with pytest.raises(UnsupportedOption, match=f"cannot do task {task}") as raised:
        for_task(models.resolve(str(tiny_gpt2)), LoadOptions(task=task))
    assert raised.value.hint == "It can do text-generation."
    source = for_task(models.resolve(str(tiny_gpt2)), LoadOptions(target_lang="de"))
    with pytest.raises(UsageError, match="does not choose among languages"):
        encoder(source)


# Languages


@pytest.mark.parametrize(
    ("kind", "options", "begin", "language"),
    [
        ("m2m_100", {"target_lang": "fr"}, (tiny.END, 6), 4),
        ("m2m_100", {"target_lang": "__fr__", "source_lang": "de"}, (tiny.END, 6), 5),
        ("mbart", {"target_lang": "de_DE", "source_lang": "fr_XX"}, (tiny.END, 5), 6),
        ("mbart", {"target_lang": "de", "source_lang": "fr"}, (tiny.END, 5), 6),
    ],
)
def test_languages_are_tokens(asked, kind, options, begin, language):
    """The source's is among the prompt's in the place that the tokenizer gives it, the target's begins the answer."""
    source = asked(kind, **options)
    made = encoder(source)
    ids = made.encode(TEXT, True)
    place = {"m2m_100": 0, "mbart": -1}[kind]
    plain = load_tokenizer(source.folder).encode(TEXT, True)
    assert (plain[place], ids[place]) == (4, language)
    assert sum(one != other for one, other in zip(ids, plain, strict=True)) == (language != 4)
    assert made.decoder_ids == begin


def test_a_decoder_that_begins_with_a_language_begins_with_another(asked):
    """As that of the first mBART does."""
    source = asked("mbart", target_lang="de")
    source.generation_config["decoder_start_token_id"] = 4
    assert encoder(source).decoder_ids == (5,)


@pytest.mark.parametrize(
    ("kind", "options", "message", "hint"),
    [
        ("m2m_100", {}, "writes 3 languages, and none is chosen", "Name one with --target-lang: __de__, __en__, __fr"),
        ("m2m_100", {"target_lang": "xx"}, "has no language 'xx'", "It has __de__"),
        ("mbart", {"target_lang": "de", "source_lang": "fr_FR"}, "has no language 'fr_FR'", "Did you mean 'fr_XX'"),
        ("marian", {"target_lang": "de"}, "does not choose among languages", "Leave --source-lang and --target-lang"),
    ],
)
def test_a_language_that_a_model_does_not_have(asked, kind, options, message, hint):
    source = asked(kind, **options)
    with pytest.raises(UsageError, match=message) as raised:
        encoder(source).check_language(source.reference)
    assert hint in raised.value.hint


def test_a_marian_model_of_several_languages_is_told_in_the_text(asked):
    source: Any = asked("marian", target_lang="fra")
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({">>fra<<": 0, "?": 1}, "?")))
    assert PromptEncoder(tokenizer, source).prefix == ">>fra<< "


def test_what_is_not_applied_is_said(tiny_seq2seq):
    notes = Recorder()
    open_generator(str(tiny_seq2seq("pegasus")), LoadOptions(device="cpu"), notes).close()
    (note,) = notes.notes
    assert "asks for num_beams=4, which hfpipe does not apply" in note


def test_the_languages_of_m2m_100_are_beside_its_vocabulary(asked):
    """As transformers' own class has them, which has no tokenizer.json."""
    own = SimpleNamespace(
        is_fast=False,
        get_vocab=lambda: {"<s>": 0, "</s>": 2, "a": 3},
        lang_token_to_id={"__en__": 4, "__de__": 5},
        all_special_tokens=["<s>", "</s>"],
        all_special_ids=[0, 2],
        get_added_vocab=dict,
        encode=lambda text, **_: [4, 3, 2],
        special_tokens_map={},
        chat_template=None,
    )
    tokenizer = from_transformers(own)
    made = PromptEncoder(tokenizer, asked("m2m_100", source_lang="de", target_lang="en"))
    assert (made.encode("a", True), made.decoder_ids) == ((5, 3, 2), (tiny.END, 4))
    assert not tokenizer.has_text(4)
