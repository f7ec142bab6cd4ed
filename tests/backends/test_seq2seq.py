"""Encoder-decoder models on every engine: greedy ids are those of transformers' `generate`, alone and in batches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from transformers.generation import logits_process

from hfpipe import models
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino.loading import EXACT
from hfpipe.errors import ContextLengthError, UnsupportedModel
from hfpipe.generator import Generator, open_generator
from hfpipe.sampling import Rules
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions, LoadOptions, TextRequest, TokenRequest
from tests import tiny
from tests.backends.running import answers, load

ENDS = frozenset({tiny.END})
LENGTHS = (24, 12, 24, 17, 12)
ENGINES = {
    "torch": ("torch", {"exact": True}),
    "torch-batch": ("torch", {"batch_size": 4}),
    "openvino": ("openvino", {"exact": True}),
    "openvino-batch": ("openvino", {"batch_size": 4, "ov_config": EXACT}),
}


@cache
def generated(folder: Path, prompts: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """What transformers' own `generate` makes of each prompt alone, without what the decoder begins with."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    start = models.resolve(str(folder)).decoder_start
    found = []
    for prompt, tokens in zip(prompts, LENGTHS, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=tokens + len(start) - 1,
        )[0].tolist()
        assert tuple(whole[: len(start)]) == start
        found.append(whole[len(start) :])
    return found


def requests_for(folder: Path) -> list[TokenRequest]:
    tokenizer = load_tokenizer(folder)
    texts = [sentence[: 70 - 14 * i] for i, sentence in enumerate(tiny.SENTENCES)]
    return [TokenRequest(str(i), tokenizer.encode(text, True), LENGTHS[i], ENDS) for i, text in enumerate(texts)]


@pytest.fixture
def loaded(tiny_seq2seq, tiny_seq2seq_ov) -> Callable[[str, str], Backend]:
    """A kind of model on an engine, by a name in ENGINES."""

    def load_it(engine: str, kind: str) -> Backend:
        name, options = ENGINES[engine]
        return load(name, (tiny_seq2seq_ov if name == "openvino" else tiny_seq2seq)(kind), **options)

    return load_it


@pytest.mark.parametrize(
    ("engine", "kind"),
    [(engine, kind) for engine in ENGINES for kind in (tiny.SEQ2SEQ if "torch" in engine else tiny.EXPORTED)],
)
def test_greedy_ids_are_those_of_transformers(tiny_seq2seq, loaded, kind, engine):
    """With what each model forces and forbids; together, in another order, and each alone."""
    folder = tiny_seq2seq(kind)
    requests = requests_for(folder)
    expected = generated(folder, tuple(request.token_ids for request in requests))
    assert len(set(map(tuple, expected))) == len(expected)
    with loaded(engine, kind) as backend:
        for some in (requests, requests[::-1], *([request] for request in requests)):
            assert answers(backend, some) == {request.id: expected[int(request.id)] for request in some}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_begins_with_what_its_request_says(tiny_seq2seq, loaded, engine):
    """Requests with other beginnings, of other lengths, are answered in one stream."""
    folder = tiny_seq2seq("m2m_100")
    request = requests_for(folder)[0]
    starts = [(tiny.END,), (tiny.END, 5), (tiny.END, 6)]
    model, ids = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), torch.tensor([request.token_ids])
    expected = {
        str(i): model.generate(ids, decoder_input_ids=torch.tensor([start]), do_sample=False, max_new_tokens=9)[
            0, len(start) :
        ].tolist()
        for i, start in enumerate(starts)
    }
    assert expected["1"] != expected["2"]
    with loaded(engine, "m2m_100") as backend:
        asked = [TokenRequest(str(i), request.token_ids, 9, ENDS, decoder_ids=one) for i, one in enumerate(starts)]
        assert answers(backend, asked) == expected


def test_prompt_and_answer_have_the_context_each(tiny_seq2seq):
    with open_generator(str(tiny_seq2seq("bart")), LoadOptions()) as generator:
        limit = generator.source.context_length
        (completion,) = generator.generate([TextRequest("a", "x" * 80, GenerationOptions(max_tokens=500))])
        assert completion.usage.prompt_tokens > 40
        assert completion.usage.completion_tokens == limit - 1
        source = replace(generator.source, config={**generator.source.config, "max_decoder_position_embeddings": 20})
        led = Generator(generator.backend, generator.tokenizer, source)
        (completion,) = led.generate([TextRequest("a", "x" * 80, GenerationOptions(max_tokens=500))])
        assert completion.usage.completion_tokens == 19
        (completion,) = generator.generate([TextRequest("a", "xyz " * 80)])
        assert isinstance(completion.error, ContextLengthError)


_SMALL = {"vocab_size": tiny.VOCABULARY, "pad_token_id": 0, "eos_token_id": tiny.END, "decoder_start_token_id": 1}
_BERT = {
    "model_type": "bert",
    **dict.fromkeys(("hidden_size", "intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 2),
    "vocab_size": tiny.VOCABULARY,
    "initializer_range": 0.5,
    "max_position_embeddings": 96,
}
_T5 = {"d_model": 48, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3}
_FFN = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_LED = {
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 3),
}
_PROPHET = {f"num_{name}": value for name, value in _LED.items()}
# Those with a way of their own to attend, to count positions, or to be put together; with the context of each.
OTHERS = {
    "encoder-decoder": ({"encoder": _BERT, "decoder": _BERT | {"is_decoder": True, "add_cross_attention": True}}, 96),
    "led": ({"d_model": 48, "attention_window": 16, "init_std": 0.8, **_LED, **_FFN}, 16384),
    "longt5": ({"local_radius": 8, "initializer_factor": 5.0, **_T5}, None),
    "prophetnet": ({"hidden_size": 48, "max_position_embeddings": 96, "init_std": 0.8, **_PROPHET, **_FFN}, 96),
    "switch_transformers": ({"num_experts": 2, "initializer_factor": 5.0, **_T5}, None),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_answer_as_in_transformers(tmp_path, kind):
    given, context = OTHERS[kind]
    config = AutoConfig.for_model(kind, **given, **_SMALL)
    tiny.save_model(tmp_path, config, seed=3)
    assert models.resolve(str(tmp_path)).context_length == context
    prompts = [tuple(range(4, 4 + length)) for length in (40, 7, 23, 40)]
    requests = [TokenRequest(str(i), ids, 9, ENDS) for i, ids in enumerate(prompts)]
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    with load("torch", tmp_path, batch_size=4) as backend:
        found = answers(backend, requests)
    for request in requests:
        ids = torch.tensor([request.token_ids])
        greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": 9}
        assert found[request.id] == model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[0, 1:].tolist()
    assert found["0"] != found["1"] != found["2"]


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("counted", ["max_tokens", "max_length"])
@pytest.mark.parametrize("kind", tiny.SEQ2SEQ)
def test_max_tokens_are_the_max_new_tokens_of_transformers(tiny_seq2seq, kind, counted):
    """A forced first token counts, in the limit and in the usage, and can be all of an answer."""
    language = {"m2m_100": "__de__", "mbart": "de_DE"}.get(kind)
    with open_generator(str(tiny_seq2seq(kind)), LoadOptions(target_lang=language, batch_size=4)) as generator:
        model = AutoModelForSeq2SeqLM.from_pretrained(generator.source.folder).eval()
        forced = {"forced_bos_token_id": generator.tokenizer.added_tokens[language]} if language else {}
        lengths = (1, 2, 3, 4, 9)
        given = [GenerationOptions(**{counted: n + (counted == "max_length")}) for n in lengths]
        requests = [TextRequest(str(n), tiny.SENTENCES[0], one) for n, one in zip(lengths, given, strict=True)]
        completions = {one.id: one for one in generator.generate(requests)}
        for request in requests:
            tokens, n = generator.prepare(request, request.id), int(request.id)
            ids = torch.tensor([tokens.token_ids])
            mask, greedy = torch.ones_like(ids), {"do_sample": False, "num_beams": 1}
            whole = model.generate(ids, attention_mask=mask, max_new_tokens=n, **forced, **greedy)[0].tolist()
            found = [*tokens.decoder_ids]
            if tokens.max_tokens:
                found += answers(generator.backend, [tokens])[request.id]
            # Where one token is forced to be the first and another the last, transformers takes the last.
            if (kind, n) != ("bart", 1):
                assert found == whole
            completion = completions[request.id]
            assert completion.error is None
            assert completion.text == generator.tokenizer.decode(whole)
            assert completion.usage.completion_tokens == len(whole) - 1
            assert completion.finish_reason == ("length" if len(whole) == n + 1 else "stop")


def test_a_decoder_without_state_is_refused(tiny_seq2seq_ov, tmp_path):
    folder = shutil.copytree(tiny_seq2seq_ov("t5"), tmp_path / "stateless")
    for end in ("xml", "bin"):
        shutil.copyfile(folder / f"openvino_encoder_model.{end}", folder / f"openvino_decoder_model.{end}")
    with pytest.raises(UnsupportedModel, match="takes attention_mask, input_ids, and not beam_idx") as raised:
        load("openvino", folder)
    assert "hfpipe export" in raised.value.hint


# What a model's settings forbid

IDS = st.lists(st.integers(3, 9), max_size=12)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "bad_words_ids": st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=3), min_size=1, max_size=4),
        "no_repeat_ngram_size": st.integers(1, 4),
        "encoder_no_repeat_ngram_size": st.integers(1, 4),
        "min_length": st.integers(1, 12),
        "min_new_tokens": st.integers(1, 12),
        "suppress_tokens": st.lists(st.integers(2, 9), min_size=1),
        "begin_suppress_tokens": st.lists(st.integers(2, 9), min_size=1),
    },
)


@given(prompt=IDS.filter(bool), answer=IDS, rules=RULES)
def test_the_rules_mean_what_transformers_means(prompt, answer, rules):
    decoder, encoder = torch.tensor([[1, *answer]]), torch.tensor([prompt])
    processors = {
        "bad_words_ids": lambda one: logits_process.NoBadWordsLogitsProcessor(one, [2]),
        "no_repeat_ngram_size": logits_process.NoRepeatNGramLogitsProcessor,
        "encoder_no_repeat_ngram_size": lambda one: logits_process.EncoderNoRepeatNGramLogitsProcessor(one, encoder),
        "min_length": lambda one: logits_process.MinLengthLogitsProcessor(one, torch.tensor([2])),
        "min_new_tokens": lambda one: logits_process.MinNewTokensLengthLogitsProcessor(1, one, torch.tensor([2])),
        "suppress_tokens": logits_process.SuppressTokensLogitsProcessor,
        "begin_suppress_tokens": lambda one: logits_process.SuppressTokensAtBeginLogitsProcessor(one, 1),
    }
    scores = torch.zeros(1, 10)
    for name, value in rules.items():
        scores = processors[name](value)(decoder, scores)
    request = TokenRequest("a", tuple(prompt), 50, ENDS, decoder_ids=(1,))
    expected = {token for token in range(10) if scores[0, token] == -torch.inf}
    assert Rules.of(rules).banned(request, answer) == expected
