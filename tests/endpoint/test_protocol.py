"""The OpenAI protocol as values: events however they are cut, what they say, and what a request holds."""

import json
import time
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.endpoint.protocol import EventReader, Part, body, is_empty, own_options, part, schema_properties
from hfpipe.errors import BackendError
from hfpipe.text.templates import Conversation
from hfpipe.types import GenerationOptions, TextRequest, Usage
from tests.endpoint.servers import choice, openapi

LINE_ENDS = ("\n", "\r\n", "\r")
# Any text of one line: no event can hold more.
LINES = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=20)


@given(st.data())
def test_the_events_are_the_same_however_their_bytes_are_cut(data):
    """With comments, other fields, several lines of data, any line ends, and a byte order mark."""
    events = data.draw(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=6))
    text = data.draw(st.sampled_from(["", "\ufeff"]))
    for lines in events:
        end = data.draw(st.sampled_from(LINE_ENDS))
        for line in lines:
            text += data.draw(st.sampled_from(["", f": keep-alive{end}", f"id: 7{end}", f"event: x{end}"]))
            text += f"data:{data.draw(st.just(' ')) if line.startswith(' ') else ' '}{line}{end}"
        text += end
    sent = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    reader = EventReader()
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert [event for piece in pieces for event in reader.feed(piece)] == ["\n".join(lines) for lines in events]


def test_an_event_that_is_not_finished_is_none():
    reader = EventReader()
    assert list(reader.feed(b'data: {"a": 1}\n')) == []
    assert list(reader.feed(b"\n")) == ['{"a": 1}']


def test_an_event_without_an_end_does_not_fill_the_memory():
    reader = EventReader()
    data = (b"x" * 1_000_000 for _ in range(20))
    with pytest.raises(BackendError, match="more than 16,000,000 characters"):
        list(chain.from_iterable(map(reader.feed, data)))


@pytest.mark.parametrize("piece", [b"x" * 4096, b"data: " + b"x" * 4096 + b"\n"])
def test_the_longest_event_is_read_in_linear_time(piece):
    """In the small pieces in which it comes, as one line or as many."""
    reader = EventReader()
    begun = time.process_time()
    with pytest.raises(BackendError, match="more than 16,000,000 characters"):
        list(chain.from_iterable(reader.feed(piece) for _ in range(5000)))
    assert time.process_time() - begun < 3


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (choice("a"), Part("a")),
        (choice("a", "length"), Part("a", "length")),
        (choice("", "eos_token", chat=False), Part("", "stop")),
        (choice("a", ""), Part("a")),
        (choice("a", "content_filter"), Part("a", "error", unfinished="The server's filter ended the answer.")),
        (
            {"choices": [{"delta": {"content": None, "tool_calls": []}, "finish_reason": "tool_calls"}]},
            Part("", "error", unfinished="The model called a tool, and hfpipe offers it none."),
        ),
        ({"choices": [{"delta": {"role": "assistant"}}]}, Part()),
        ({"choices": [{"delta": {"content": None, "reasoning_content": "Hm."}}]}, Part()),
        ({"choices": [{"delta": None, "finish_reason": "stop"}]}, Part(finish_reason="stop")),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}, Part(usage=Usage(3, 4))),
        ({"choices": [], "usage": None}, Part()),
    ],
)
def test_what_an_event_says(event, expected):
    assert part(json.dumps(event)) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("{", "an event that is not JSON"),
        ("[" * 100_000, "an event that is not JSON"),
        ("[]", "an event without choices"),
        ('{"choices": 1}', "an event without choices"),
        ('{"choices": ["x"]}', "a choice that is not of the OpenAI protocol"),
        ('{"choices": [{"text": "x", "finish_reason": "boredom"}]}', "an unknown finish_reason, 'boredom'"),
        ('{"error": {"message": "out of memory"}}', "an error: out of memory"),
        ('{"error": "overloaded"}', "an error: overloaded"),
    ],
)
def test_an_event_that_is_wrong_says_why(data, reason):
    with pytest.raises(BackendError, match=reason):
        part(data)


def test_a_request_of_the_plain_protocol():
    options = GenerationOptions(max_tokens=5, temperature=0.5, top_p=0.9, stop=("a", "b", "c", "d", "e"))
    messages = [{"role": "user", "content": "hi"}]
    assert body("m", TextRequest("1", Conversation(messages, {}), options), 3, {"top_k": 4}) == {
        "model": "m",
        "messages": messages,
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "top_k": 4,
        "stop": ["a", "b", "c", "d"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    plain = body("m", TextRequest("1", "hi"), None, {})
    assert plain["prompt"] == "hi"
    assert plain["max_tokens"] == 256
    assert {"temperature", "seed", "stop", "messages"}.isdisjoint(plain)


def test_what_is_no_part_of_the_plain_protocol():
    options = GenerationOptions(top_k=4, min_p=0.1, repetition_penalty=1.1)
    assert own_options(TextRequest("1", "hi", options)) == {"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1}
    assert own_options(TextRequest("1", "hi", add_special_tokens=False)) == {"add_special_tokens": False}
    continued = Conversation([{"role": "assistant", "content": "It"}], {"enable_thinking": False})
    assert own_options(TextRequest("1", continued)) == {
        "chat_template_kwargs": {"enable_thinking": False},
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


def test_what_a_server_says_that_it_takes():
    described = openapi({"top_k": "integer"})
    assert schema_properties(described, "completions") == {"top_k"}
    (path,) = {id(one): one for one in described["paths"].values()}.values()
    schema = path["post"]["requestBody"]["content"]["application/json"]["schema"]
    path["post"]["requestBody"]["content"]["application/json"]["schema"] = {"anyOf": [schema, {"type": "null"}]}
    assert schema_properties(described, "chat/completions") == {"top_k"}
    assert schema_properties(described, "embeddings") == frozenset()
    assert schema_properties(None, "completions") == frozenset()


def test_a_conversation_with_the_systems_words_alone_is_empty():
    def conversation(*contents):
        return Conversation([{"role": role, "content": text} for role, text in contents], {})

    assert is_empty("")
    assert is_empty(conversation(("user", "")))
    assert is_empty(conversation(("system", "Be brief."), ("user", "")))
    assert not is_empty(conversation(("user", "hi"), ("assistant", "")))
