"""Text in, text events out, over every backend."""

import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hfpipe import models
from hfpipe.backends.base import Backend
from hfpipe.backends.echo import EchoBackend
from hfpipe.backends.scheduling import Flight
from hfpipe.errors import BackendError, ContextLengthError, UnsupportedOption, UsageError
from hfpipe.generator import Generator, open_generator
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import Completion, GenerationOptions, LoadOptions, Silent, TextEvent, TextRequest, TokenEvent
from tests import tiny

ENGINES = {
    "torch": LoadOptions(backend="torch", dtype="float32", batch_size=4),
    "openvino-single": LoadOptions(backend="openvino", exact=True, batch_size=1),
    "openvino-paged": LoadOptions(backend="openvino", exact=True, batch_size=4),
}
QUESTION = tiny.SENTENCES[1]
NOTHING = GenerationOptions()


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def opened(tiny_gpt2, tiny_gpt2_ov, tiny_llama, tiny_llama_ov):
    """The generator of an engine over a tiny model, opened once."""
    folders = {
        ("gpt2", "torch"): tiny_gpt2,
        ("gpt2", "openvino"): tiny_gpt2_ov,
        ("llama", "torch"): tiny_llama,
        ("llama", "openvino"): tiny_llama_ov,
    }
    made: dict[tuple[str, str], Generator] = {}

    def get(model: str, engine: str) -> Generator:
        if (model, engine) not in made:
            options = ENGINES[engine]
            made[model, engine] = open_generator(str(folders[model, options.backend]), options)
        return made[model, engine]

    yield get
    for generator in made.values():
        generator.close()


@pytest.fixture(params=ENGINES)
def generator(request, opened) -> Generator:
    """128 positions, no end token that ever comes."""
    return opened("gpt2", request.param)


@pytest.fixture(params=ENGINES)
def llama(request, opened) -> Generator:
    return opened("llama", request.param)


@pytest.fixture
def echo(tiny_gpt2) -> Generator:
    return echoing(tiny_gpt2)


def echoing(folder: Path, batch_size: int = 4, **preferred: Any) -> Generator:
    """A generator that answers with the prompt."""
    source = models.resolve(str(folder))
    source = replace(source, generation_config={**source.generation_config, **preferred})
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


def joined(events: Sequence[TextEvent], request_id: str) -> str:
    return "".join(event.text for event in events if event.id == request_id)


# Streams


def test_what_streams_is_the_answer(generator):
    request = ask(max_tokens=30)
    events = list(generator.stream([request]))
    completion = answer(generator, request)
    assert joined(events, "a") == completion.text
    assert len(events) > 10
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]
    assert all(event.text for event in events[:-1]), "an event without text says nothing"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (prompt_tokens(generator), 30)
    assert events[-1].usage == completion.usage


def prompt_tokens(generator: Generator, prompt: str = QUESTION) -> int:
    return len(generator.tokenizer.encode(prompt, add_special_tokens=True))


def test_the_text_is_what_the_tokenizer_makes_of_all_the_tokens(generator):
    request = ask(max_tokens=40)
    tokens = generator.prepare(request, "a")
    ids = [token for event in generator.backend.stream([tokens]) for token in event.token_ids]
    everything = generator.tokenizer.decode([*tokens.token_ids, *ids])
    assert everything == QUESTION + answer(generator, request).text


def test_several_at_once(generator):
    requests = [ask(tiny.SENTENCES[n % 5], f"r{n}", max_tokens=5 + 3 * n) for n in range(9)]
    alone = whole(answer(generator, request) for request in requests)
    assert whole(generator.generate(requests)) == alone
    assert {reason for _, reason, _, _ in alone.values()} == {"length"}


def test_events_of_several_are_interleaved(opened):
    for engine in ("torch", "openvino-paged"):
        events = opened("gpt2", engine).stream([ask(request_id=f"r{n}", max_tokens=20) for n in range(4)])
        order = [event.id for event in events]
        assert order != sorted(order)
        assert set(order) == {"r0", "r1", "r2", "r3"}


def test_the_same_id_twice(generator):
    """Ids belong to the caller."""
    completions = list(generator.generate([ask(max_tokens=4), ask(tiny.SENTENCES[0], max_tokens=6)]))
    assert [completion.id for completion in completions] == ["a", "a"]
    assert sorted(completion.usage.completion_tokens for completion in completions) == [4, 6]


def test_requests_are_pulled_as_there_is_room(tiny_gpt2):
    pulled, ended = 0, 0

    def requests() -> Iterator[TextRequest]:
        nonlocal pulled
        for number in range(12):
            pulled += 1
            yield ask("" if number % 3 == 0 else "One two three", f"r{number}")

    stream = echoing(tiny_gpt2, batch_size=2).stream(requests())
    assert pulled == 0
    for event in stream:
        ended += event.finish_reason is not None
        assert pulled - ended <= 2
    assert pulled == ended == 12


def test_none_as_yet(generator):
    """The generator hands it on: of two requests at most one is in flight."""
    ended = []

    def one_ahead() -> Iterator[TextRequest | None]:
        for number in range(3):
            while len(ended) < number:
                yield None
            yield ask(request_id=str(number), max_tokens=4)

    for completion in generator.generate(one_ahead()):
        ended += [completion.id]
    assert ended == ["0", "1", "2"]


def test_leaving_a_stream_early(generator):
    stream = generator.stream([ask(request_id=str(n), max_tokens=60) for n in range(6)])
    next(stream)
    stream.close()
    assert answer(generator, ask(max_tokens=3)).usage.completion_tokens == 3


def test_streams_in_several_threads(generator):
    requests = [[ask(tiny.SENTENCES[n], f"r{n}", max_tokens=12 + i) for n in range(3)] for i in range(3)]
    alone = [whole(generator.generate(some)) for some in requests]
    together: dict[int, dict[str, Any]] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.__setitem__(i, whole(generator.generate(requests[i]))))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together.get(i) for i in range(3)] == alone


# Characters of several tokens


@pytest.mark.parametrize("text", ["😀", "a😀b", "👩‍👩‍👧‍👦 ok", "日本語", "é\u0301", "x" * 30])
def test_a_character_of_several_tokens_comes_whole(echo, text):
    events = list(echo.stream([ask(text)]))
    assert joined(events, "a") == text
    assert not any("\ufffd" in event.text for event in events)
    assert events[-1].usage.completion_tokens == prompt_tokens(echo, text)


def test_half_a_character_at_the_end_is_shown_as_such(echo):
    assert prompt_tokens(echo, "😀") == 4
    assert answer(echo, ask("ok😀", max_tokens=prompt_tokens(echo, "ok") + 2)).text == "ok\ufffd"


# Stop strings


def stop_in(text: str, length: int = 6) -> str:
    """A string in the middle of an answer that comes there for the first time."""
    start = next(i for i in range(len(text) // 3, len(text)) if text.find(text[i : i + length]) == i)
    return text[start : start + length]


def test_a_stop_string_over_several_tokens(llama):
    text = answer(llama, ask(max_tokens=60)).text
    stop = stop_in(text)
    assert len(llama.tokenizer.encode(stop, add_special_tokens=False)) > 1
    events = list(llama.stream([ask(max_tokens=60, stop=(stop,))]))
    assert joined(events, "a") == text[: text.index(stop)]
    assert events[-1].finish_reason == "stop"
    assert 0 < events[-1].usage.completion_tokens < 60


def test_the_engine_stops_at_a_stop_string(llama, monkeypatch):
    room, made, take = 400, [], Flight.take
    text = answer(llama, ask(max_tokens=room)).text
    monkeypatch.setattr(Flight, "take", lambda flight, token: made.append(token) or take(flight, token))
    completion = answer(llama, ask(max_tokens=room, stop=(stop_in(text[:60]),)))
    assert completion.finish_reason == "stop"
    assert completion.usage.completion_tokens <= len(made) < room


def test_the_first_of_several_stop_strings(llama):
    text = answer(llama, ask(max_tokens=60)).text
    late, early = stop_in(text), text[2:7]
    completion = answer(llama, ask(max_tokens=60, stop=(late, "never", early)))
    assert completion.text == text[:2]


def test_a_stop_string_that_never_comes(llama):
    """What might have been its beginning is shown at the end."""
    text = answer(llama, ask(max_tokens=20)).text
    stop = text[-4:] + "☃"
    completion = answer(llama, ask(max_tokens=20, stop=(stop,)))
    assert (completion.text, completion.finish_reason) == (text, "length")


def test_a_stop_string_that_is_complete_with_the_last_token(echo):
    completion = answer(echo, ask("One two three four", stop=("four",)))
    assert (completion.text, completion.finish_reason) == ("One two three ", "stop")


def test_a_stop_string_ends_its_own_request_only(llama):
    requests = [ask(sentence, f"r{n}", max_tokens=40) for n, sentence in enumerate(tiny.SENTENCES[:4])]
    alone = whole(llama.generate(requests))
    stop = stop_in(alone["r2"][0])
    stopped = replace(requests[2], options=GenerationOptions(max_tokens=40, stop=(stop,)))
    together = whole(llama.generate([*requests[:2], stopped, requests[3]]))
    assert together["r2"][:2] == (alone["r2"][0][: alone["r2"][0].index(stop)], "stop")
    del alone["r2"], together["r2"]
    assert together == alone


def test_stop_strings_do_not_see_the_prompt(echo):
    assert answer(echo, ask("One two. One two.", stop=("One two. One two. One",))).text == "One two. One two."


def test_a_stop_string_that_is_a_special_token(echo):
    """It has no text in which it could be found."""
    completion = answer(echo, ask("One two<|im_end|> three", stop=("<|im_end|>",)))
    assert (completion.text, completion.finish_reason) == ("One two", "stop")
    assert answer(echo, ask("One two<|im_end|> three")).text == "One two three"


# Where an answer ends


def test_an_end_token_is_counted_and_not_shown(tiny_llama):
    generator = echoing(tiny_llama)
    completion = answer(generator, ask("One two<|im_end|> three"))
    assert (completion.text, completion.finish_reason) == ("One two", "stop")
    assert completion.usage.completion_tokens == prompt_tokens(generator, "One two") + 1


def test_several_end_tokens(tiny_llama):
    generator = echoing(tiny_llama, eos_token_id=[tiny.END_OF_TEXT, tiny.IM_START])
    assert answer(generator, ask("One<|endoftext|>two")).text == "One"
    assert answer(generator, ask("One<|im_start|>two")).text == "One"
    assert answer(generator, ask("One<|im_end|>two")).text == "One"  # the end that the tokenizer names


def test_an_end_token_of_a_models_text_part(tiny_llama):
    source = models.resolve(str(tiny_llama))
    config = {**source.config, "eos_token_id": None, "text_config": {"eos_token_id": tiny.IM_END}}
    source = replace(source, config=config, generation_config={})
    generator = Generator(EchoBackend(), load_tokenizer(tiny_llama), source)
    assert answer(generator, ask("One<|im_end|>two")).text == "One"


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


@pytest.mark.parametrize("room", [1, 5, 100])
def test_max_tokens_is_cut_to_the_context(generator, room):
    """128 positions: OpenVINO itself would go on for ever."""
    prompt = prompt_of(generator, 128 - room)
    completion = answer(generator, ask(prompt, max_tokens=500))
    assert (completion.usage.total_tokens, completion.finish_reason) == (128, "length")


@pytest.mark.parametrize("tokens", [128, 129, 1000])
def test_a_prompt_that_does_not_fit(generator, tokens):
    completion = answer(generator, ask(prompt_of(generator, tokens)))
    assert completion.finish_reason == "error"
    assert isinstance(completion.error, ContextLengthError)
    assert f"has {tokens} tokens" in completion.error.message
    assert "is 128" in completion.error.message
    assert completion.error.hint


def prompt_of(generator: Generator, tokens: int) -> str:
    prompt = " and" * tokens
    assert prompt_tokens(generator, prompt) == tokens
    return prompt


def test_of_a_prompt_that_cannot_fit_only_the_beginning_is_tokenized(echo, monkeypatch):
    encode, seen = echo.tokenizer.encode, []
    monkeypatch.setattr(echo.tokenizer, "encode", lambda text, special: seen.append(text) or encode(text, special))
    with pytest.raises(ContextLengthError, match=r"^The prompt has at least \d+ tokens, and the context of .* is 128"):
        echo.prepare(ask("word " * 2_000_000), "a")
    assert [len(text) for text in seen] == [999_999]


def test_a_long_prompt_that_may_fit_is_tokenized(echo):
    echo.source = replace(echo.source, context_length=3_000_000)
    assert len(echo.prepare(ask(" " + "word " * 250_000), "a").token_ids) < 3_000_000


def test_without_a_limit_there_is_none(tiny_gpt2):
    generator = echoing(tiny_gpt2)
    generator.source = replace(generator.source, context_length=None)
    prompt = prompt_of(generator, 300)
    assert answer(generator, ask(prompt, max_tokens=1000)).text == prompt


# Requests that fail


def test_an_empty_prompt(generator):
    completion = answer(generator, ask(""))
    assert (completion.text, completion.finish_reason, completion.usage) == ("", "error", None)
    assert isinstance(completion.error, UsageError)
    assert completion.error.message == "The prompt is empty."


def test_bad_prompts_among_good(generator):
    """The errors come in their turn, while others go on; a later good one is answered as ever."""
    good = [ask(tiny.SENTENCES[n], f"good{n}", max_tokens=9) for n in range(5)]
    alone = whole(generator.generate(good))
    bad = [ask("", "bad0"), ask(prompt_of(generator, 128), "bad1")]
    found = whole(generator.generate([bad[0], *good[:3], bad[1], *good[3:], bad[0]]))
    assert {name: found.pop(name)[1] for name in ("bad0", "bad1")} == {"bad0": "error", "bad1": "error"}
    assert found == alone


def test_errors_do_not_wait_for_a_good_prompt(echo):
    """A file of bad lines streams its errors, however long it is."""

    def requests() -> Iterator[TextRequest]:
        number = 0
        while True:
            yield ask("", str(number))
            number += 1

    stream = echo.stream(requests())
    assert [next(stream).id for _ in range(100)] == [str(n) for n in range(100)]
    stream.close()


class FailsLate(Backend):
    """Gives two tokens of each request, then an error."""

    name = "late"

    @classmethod
    def load(cls, *arguments: object) -> "FailsLate":
        return cls()

    def stream(self, requests: Iterable[Any]) -> Iterator[TokenEvent]:
        for request in requests:
            yield TokenEvent(request.id, request.token_ids[:1])
            yield TokenEvent(request.id, request.token_ids[1:2])
            yield TokenEvent(request.id, finish_reason="error", error=BackendError("lost"))

    def cancel(self, request_id: str) -> None:
        pass


def test_an_error_after_some_text(echo):
    generator = Generator(FailsLate(), echo.tokenizer, echo.source)
    events = list(generator.stream([ask("One two three"), ask("One two four", "b")]))
    assert [event.finish_reason for event in events if event.id == "a"] == [None, None, "error"]
    assert (
        joined(events, "a")
        == joined(events, "b")
        == echo.tokenizer.decode(echo.tokenizer.encode("One two three", add_special_tokens=True)[:2])
    )
    assert str(events[-1].error) == "lost"


# What the model prefers


@pytest.fixture
def preferring(tmp_path, tiny_llama):
    """A generator over a copy of the tiny Llama with another generation_config.json, and what was noted."""

    def get(**preferred: Any) -> tuple[Generator, list[str]]:
        folder = Path(shutil.copytree(tiny_llama, tmp_path / str(len(list(tmp_path.iterdir())))))
        (folder / "generation_config.json").write_text(json.dumps(preferred))
        reporter = Notes()
        return open_generator(str(folder), ENGINES["torch"], reporter), reporter.notes

    return get


def test_the_number_of_tokens_it_prefers(preferring):
    generator, notes = preferring(max_new_tokens=7)
    assert answer(generator, ask()).usage.completion_tokens == 7
    assert answer(generator, ask(max_tokens=9)).usage.completion_tokens == 9
    assert [note for note in notes if "generation_config" in note] == []


def test_a_model_that_prefers_to_sample(preferring):
    generator, _ = preferring(do_sample=True, temperature=1.0, max_new_tokens=20)
    greedy = answer(generator, ask(temperature=0)).text
    texts = {answer(generator, ask()).text for _ in range(3)}
    assert len(texts) == 3, "without a seed each answer is drawn anew"
    assert len({answer(generator, ask(seed=4)).text for _ in range(3)}) == 1
    assert greedy == answer(preferring()[0], ask(max_tokens=20)).text


def test_what_is_not_applied_is_said(preferring):
    _, notes = preferring(num_beams=4, temperature=0.5)
    (note,) = [note for note in notes if "generation_config" in note]
    assert "asks for num_beams=4, which hfpipe does not apply" in note


# Seeds


def test_a_seed(generator):
    first, second = (answer(generator, ask(max_tokens=20, temperature=1.0, seed=11)) for _ in range(2))
    assert first.text == second.text
    others = {answer(generator, ask(max_tokens=20, temperature=1.0, seed=seed)).text for seed in (12, None, None)}
    assert len(others | {first.text}) == 4


def test_a_seed_draws_the_same_beside_others(generator):
    request = ask(max_tokens=15, temperature=1.0, seed=11)
    alone = answer(generator, request)
    others = [ask(tiny.SENTENCES[n], f"r{n}", max_tokens=15, temperature=2.0) for n in range(3)]
    assert whole(generator.generate([*others, request]))["a"] == whole([alone])["a"]


# Moments


def test_moments_are_in_order(generator):
    requests = [ask(request_id=f"r{n}", max_tokens=10) for n in range(5)]
    for completion in generator.generate(requests):
        timing = completion.timing
        assert timing.start < timing.first_token < timing.end
    timing = answer(generator, ask(max_tokens=1)).timing
    assert timing.start < timing.first_token == timing.end


# Opening


def test_the_context_manager_closes(tiny_llama):
    with open_generator(str(tiny_llama), ENGINES["torch"]) as generator:
        assert answer(generator, ask(max_tokens=2)).usage.completion_tokens == 2
    with pytest.raises(BackendError, match="closed"):
        answer(generator, ask())


def test_opening_says_what_was_chosen(tiny_llama, tiny_llama_ov):
    for folder, name in ((tiny_llama, "torch"), (tiny_llama_ov, "openvino")):
        with open_generator(str(folder), LoadOptions(batch_size=1)) as generator:
            assert generator.backend.info.name == name
            assert generator.why
            assert generator.load_s > 0
            assert generator.source.reference == str(folder)


def test_an_option_that_cannot_be_honoured_is_found_as_soon_as_the_backend_is_known(tiny_llama_ov):
    with pytest.raises(UnsupportedOption, match="openvino backend cannot honour --dtype"):
        open_generator("no/such/model/at/all", LoadOptions(backend="openvino", dtype="bf16"))
    with pytest.raises(UnsupportedOption, match="openvino backend cannot honour --attn"):
        open_generator(str(tiny_llama_ov), LoadOptions(attn="eager"))


# The real model


@pytest.mark.model
def test_the_real_model_answers(smollm2):
    prompt = "<|im_start|>user\nWhat is the capital of France? Answer in one word.<|im_end|>\n<|im_start|>assistant\n"
    request = TextRequest("a", prompt, GenerationOptions(max_tokens=40, temperature=0), add_special_tokens=False)
    answers = set()
    for options in (
        LoadOptions(backend="torch", exact=True),
        LoadOptions(backend="openvino", exact=True, batch_size=1),
    ):
        with open_generator("smollm2", options) as generator:
            completion = answer(generator, request)
        assert "Paris" in completion.text
        assert completion.finish_reason == "stop"
        assert "<|im_end|>" not in completion.text
        answers.add((completion.text, completion.usage))
    assert len(answers) == 1
