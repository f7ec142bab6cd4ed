"""Text in, text events out, over every backend. What an engine alone promises has its tests in tests/backends."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from hfpipe import models
from hfpipe.backends.echo import EchoBackend
from hfpipe.backends.scheduling import Flight
from hfpipe.errors import BackendError, ContextLengthError, UnsupportedOption, UsageError
from hfpipe.generator import Generator, open_generator
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import Completion, GenerationOptions, LoadOptions, TextEvent, TextRequest
from tests import tiny
from tests.recorder import Recorder

ENGINES = {
    "torch": LoadOptions(backend="torch", dtype="float32", batch_size=4),
    "openvino-single": LoadOptions(backend="openvino", exact=True, batch_size=1),
    "openvino-paged": LoadOptions(backend="openvino", exact=True, batch_size=4),
}
QUESTION = tiny.SENTENCES[1]


@pytest.fixture(scope="module", params=ENGINES)
def generator(request) -> Iterator[Generator]:
    """128 positions, no end token that ever comes."""
    name = "tiny_gpt2" if request.param == "torch" else "tiny_gpt2_ov"
    with open_generator(str(request.getfixturevalue(name)), ENGINES[request.param]) as opened:
        yield opened


@pytest.fixture(scope="module", params=ENGINES)
def llama(request) -> Iterator[Generator]:
    name = "tiny_llama" if request.param == "torch" else "tiny_llama_ov"
    with open_generator(str(request.getfixturevalue(name)), ENGINES[request.param]) as opened:
        yield opened


@pytest.fixture
def echo(tiny_gpt2) -> Generator:
    return echoing(tiny_gpt2)


def echoing(folder: Path, batch_size: int = 4, **changes: Any) -> Generator:
    """A generator that answers with the prompt. `changes` are of its model."""
    source = replace(models.resolve(str(folder)), **changes)
    return Generator(EchoBackend(batch_size), load_tokenizer(folder), source)


def ask(prompt: str = QUESTION, request_id: str = "a", **options: Any) -> TextRequest:
    return TextRequest(request_id, prompt, GenerationOptions(**options))


def answer(generator: Generator, request: TextRequest) -> Completion:
    (completion,) = generator.generate([request])
    assert completion.id == request.id
    return completion


def whole(completions: Iterable[Completion]) -> dict[str, tuple[Any, ...]]:
    """All of each answer but its moments."""
    return {c.id: (c.text, c.finish_reason, c.usage, c.error and str(c.error)) for c in completions}


def joined(events: Sequence[TextEvent]) -> str:
    return "".join(event.text for event in events)


def prompt_tokens(generator: Generator, prompt: str = QUESTION) -> int:
    return len(generator.tokenizer.encode(prompt, add_special_tokens=True))


def prompt_of(generator: Generator, tokens: int) -> str:
    prompt = " and" * tokens
    assert prompt_tokens(generator, prompt) == tokens
    return prompt


# Streams


def test_what_streams_is_the_answer_and_what_the_tokenizer_makes_of_all_tokens(generator):
    request = ask(max_tokens=30, stop=("never",))
    events = list(generator.stream([request]))
    completion = answer(generator, request)
    assert joined(events) == completion.text
    assert len(events) > 10
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]
    assert all(event.text for event in events[:-1]), "an event without text says nothing"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (prompt_tokens(generator), 30)
    assert events[-1].usage == completion.usage
    assert completion.timing.start < completion.timing.first_token < completion.timing.end
    tokens = generator.prepare(request, "a")
    ids = [token for event in generator.backend.stream([tokens]) for token in event.token_ids]
    assert generator.tokenizer.decode([*tokens.token_ids, *ids]) == QUESTION + completion.text


def test_the_same_id_twice(generator):
    """Ids belong to the caller."""
    completions = list(generator.generate([ask(max_tokens=1), ask(tiny.SENTENCES[0], max_tokens=6)]))
    assert [completion.id for completion in completions] == ["a", "a"]
    assert sorted(completion.usage.completion_tokens for completion in completions) == [1, 6]
    (timing,) = [completion.timing for completion in completions if completion.usage.completion_tokens == 1]
    assert timing.start < timing.first_token == timing.end


def test_requests_are_pulled_as_there_is_room(tiny_gpt2):
    pulled, ended = 0, 0

    def requests() -> Iterator[TextRequest | None]:
        nonlocal pulled
        for number in range(12):
            while number > 6 and ended < number:
                yield None  # of these at most one is in flight
            pulled += 1
            yield ask("" if number % 3 == 0 else "One two three", f"r{number}")

    stream = echoing(tiny_gpt2, batch_size=2).stream(requests())
    assert pulled == 0
    for event in stream:
        ended += event.finish_reason is not None
        assert pulled - ended <= 2
    assert pulled == ended == 12


@pytest.mark.parametrize("text", ["😀", "a😀b", "👩‍👩‍👧‍👦 ok", "日本語", "é\u0301", "x" * 30])
def test_a_character_of_several_tokens_comes_whole(echo, text):
    events = list(echo.stream([ask(text)]))
    assert joined(events) == text
    assert not any("\ufffd" in event.text for event in events)
    assert events[-1].usage.completion_tokens == prompt_tokens(echo, text)


def test_half_a_character_at_the_end_is_shown_as_such(echo):
    assert prompt_tokens(echo, "😀") == 4
    assert answer(echo, ask("ok😀", max_tokens=prompt_tokens(echo, "ok") + 2)).text == "ok\ufffd"


# Where an answer ends


def stop_in(text: str, length: int = 6) -> str:
    """A string in the middle of an answer that comes there for the first time."""
    start = next(i for i in range(len(text) // 3, len(text)) if text.find(text[i : i + length]) == i)
    return text[start : start + length]


def test_a_stop_string_over_several_tokens_stops_the_engine(llama, monkeypatch):
    room, made, take = 400, [], Flight.take
    text = answer(llama, ask(max_tokens=room)).text
    stop = stop_in(text[:60])
    assert len(llama.tokenizer.encode(stop, add_special_tokens=False)) > 1
    monkeypatch.setattr(Flight, "take", lambda flight, token: made.append(token) or take(flight, token))
    events = list(llama.stream([ask(max_tokens=room, stop=(stop, "never"))]))
    assert joined(events) == text[: text.index(stop)]
    assert events[-1].finish_reason == "stop"
    assert 0 < events[-1].usage.completion_tokens <= len(made) < room


def test_a_stop_string_ends_its_own_request_only(llama):
    requests = [ask(sentence, f"r{n}", max_tokens=40) for n, sentence in enumerate(tiny.SENTENCES[:4])]
    alone = whole(llama.generate(requests))
    stop = stop_in(alone["r2"][0])
    requests[2] = ask(tiny.SENTENCES[2], "r2", max_tokens=40, stop=(stop,))
    together = whole(llama.generate(requests))
    assert together["r2"][:2] == (alone["r2"][0][: alone["r2"][0].index(stop)], "stop")
    del alone["r2"], together["r2"]
    assert together == alone


@pytest.mark.parametrize(
    ("prompt", "stop", "text"),
    [
        ("One two three four", ("four",), "One two three "),
        ("One two three four", ("three", "never", "two"), "One "),
        ("One two three four", ("four and",), None),
        ("One two. One two.", ("One two. One two. One",), None),
        ("One two<|im_end|> three", ("<|im_end|>",), "One two"),
        ("One two<|im_end|> three", (), "One two three"),
    ],
    ids=["with the last token", "the first", "the beginning of one", "in the prompt", "special", "special, not asked"],
)
def test_stop_strings(echo, prompt, stop, text):
    """A special token has no text in which it could be found."""
    completion = answer(echo, ask(prompt, stop=stop))
    assert (completion.text, completion.finish_reason) == (text or prompt, "stop")


@pytest.mark.parametrize(
    ("config", "generation_config", "ends"),
    [
        ({}, {}, ["<|im_end|>"]),
        ({}, {"eos_token_id": [tiny.END_OF_TEXT, tiny.IM_START]}, tiny.SPECIAL_TOKENS),
        ({"text_config": {"eos_token_id": tiny.END_OF_TEXT}}, {}, ["<|endoftext|>", "<|im_end|>"]),
    ],
    ids=["the tokenizer's", "several", "of a text part"],
)
def test_an_end_token_is_counted_and_not_shown(tiny_llama, config, generation_config, ends):
    generator = echoing(tiny_llama, config=config, generation_config=generation_config)
    for token in tiny.SPECIAL_TOKENS:
        completion = answer(generator, ask(f"One{token} two"))
        assert completion.text == ("One" if token in ends else "One two")
        if token in ends:
            assert completion.finish_reason == "stop"
            assert completion.usage.completion_tokens == prompt_tokens(generator, "One") + 1


def test_the_models_own_end_token(llama):
    """As the generation config names it, on every engine."""
    tokens = [
        token for event in llama.backend.stream([llama.prepare(ask(max_tokens=40), "a")]) for token in event.token_ids
    ]
    at = next(i for i in range(8, 40) if tokens[i] not in tokens[:i])
    source = replace(llama.source, generation_config={"eos_token_id": [tiny.IM_END, tokens[at]]})
    completion = answer(Generator(llama.backend, llama.tokenizer, source), ask(max_tokens=40))
    assert completion.finish_reason == "stop"
    assert completion.usage.completion_tokens == at + 1
    assert completion.text == answer(llama, ask(max_tokens=at)).text


@pytest.mark.parametrize("room", [1, 100])
def test_max_tokens_is_cut_to_the_context(generator, room):
    """128 positions: OpenVINO itself would go on for ever."""
    completion = answer(generator, ask(prompt_of(generator, 128 - room), max_tokens=500))
    assert (completion.usage.total_tokens, completion.finish_reason) == (128, "length")


@pytest.mark.parametrize("tokens", [128, 129, 1000])
def test_a_prompt_that_does_not_fit(echo, tiny_gpt2, tokens):
    prompt = prompt_of(echo, tokens)
    completion = answer(echo, ask(prompt))
    assert completion.finish_reason == "error"
    assert isinstance(completion.error, ContextLengthError)
    assert f"has {tokens} tokens" in completion.error.message
    assert "is 128" in completion.error.message
    assert completion.error.hint
    assert answer(echoing(tiny_gpt2, context_length=None), ask(prompt, max_tokens=1000)).text == prompt


def test_of_a_prompt_that_cannot_fit_only_the_beginning_is_tokenized(echo, monkeypatch):
    seen = []
    monkeypatch.setattr(echo.tokenizer, "encode", lambda text, _: seen.append(len(text)) or (0,) * (len(text) // 5))
    with pytest.raises(ContextLengthError, match=r"^The prompt has at least \d+ tokens, and the context of .* is 128"):
        echo.prepare(ask("word " * 2_000_000), "a")
    echo.source = replace(echo.source, context_length=3_000_000)
    assert len(echo.prepare(ask("word " * 250_000), "a").token_ids) == 250_000
    assert seen == [999_999, 1_250_000]


# Requests that fail


def test_bad_prompts_among_good(generator):
    """The errors come in their turn, while others go on; a later good one is answered as ever."""
    good = [ask(tiny.SENTENCES[n], f"good{n}", max_tokens=5 + 3 * n) for n in range(5)]
    alone = whole(answer(generator, one) for one in good)
    bad = [ask("", "bad0"), ask(prompt_of(generator, 128), "bad1")]
    found = whole(generator.generate([bad[0], *good[:3], bad[1], *good[3:], bad[0]]))
    assert found.pop("bad0") == ("", "error", None, "The prompt is empty.")
    assert found.pop("bad1")[1] == "error"
    assert found == alone
    assert isinstance(answer(generator, bad[0]).error, UsageError)


def test_errors_do_not_wait_for_a_good_prompt(echo):
    """A file of bad lines streams its errors, however long it is."""
    stream = echo.stream(ask("", str(number)) for number in count())
    assert [event.id for event in islice(stream, 100)] == [str(n) for n in range(100)]
    stream.close()


# Opening, and what the model prefers


def test_what_the_models_generation_config_prefers(tmp_path, tiny_llama):
    folder, notes = Path(shutil.copytree(tiny_llama, tmp_path / "model")), Recorder()
    preferred = {"do_sample": True, "temperature": 1.0, "max_new_tokens": 20, "num_beams": 4}
    (folder / "generation_config.json").write_text(json.dumps(preferred))
    with open_generator(str(folder), ENGINES["torch"], notes) as generator:
        drawn = {answer(generator, ask()).text for _ in range(3)}
        greedy = answer(generator, ask(temperature=0))
        assert len(drawn | {greedy.text}) == 4, "without a seed each answer is drawn anew"
        assert greedy.usage.completion_tokens == 20
        assert answer(generator, ask(max_tokens=9, temperature=0)).usage.completion_tokens == 9
        assert len({answer(generator, ask(seed=4)).text for _ in range(3)}) == 1
    (note,) = [note for note in notes.notes if "generation_config" in note]
    assert "asks for num_beams=4, which hfpipe does not apply" in note


def test_opening_says_what_was_chosen_and_closing_ends_it(tiny_llama, tiny_llama_ov):
    for folder, name in ((tiny_llama, "torch"), (tiny_llama_ov, "openvino")):
        with open_generator(str(folder), LoadOptions(batch_size=1)) as generator:
            assert generator.backend.info.name == name
            assert generator.why
            assert generator.load_s > 0
            assert generator.source.reference == str(folder)
    with pytest.raises(BackendError, match="closed"):
        answer(generator, ask())


def test_an_option_that_cannot_be_honoured_is_found_as_soon_as_the_backend_is_known(tiny_llama_ov):
    with pytest.raises(UnsupportedOption, match="openvino backend cannot honour dtype"):
        open_generator("no/such/model/at/all", LoadOptions(backend="openvino", dtype="bf16"))
    with pytest.raises(UnsupportedOption, match="openvino backend cannot honour attn"):
        open_generator(str(tiny_llama_ov), LoadOptions(attn="eager"))


@pytest.mark.model
def test_the_real_model_answers(smollm2):
    prompt = "<|im_start|>user\nWhat is the capital of France? Answer in one word.<|im_end|>\n<|im_start|>assistant\n"
    request = TextRequest("a", prompt, GenerationOptions(max_tokens=40, temperature=0), add_special_tokens=False)
    with open_generator("smollm2", LoadOptions(backend="openvino", exact=True, batch_size=1)) as generator:
        completion = answer(generator, request)
    assert "Paris" in completion.text
    assert completion.finish_reason == "stop"
    assert "<|im_end|>" not in completion.text
