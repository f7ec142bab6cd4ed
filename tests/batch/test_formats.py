"""Lines as records and answers as lines. OpenAI's envelope is checked with the types of OpenAI's own package."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion
from openai.types.shared import ErrorObject

from hfpipe.batch.formats import Format, OpenAIFormat, Result
from hfpipe.batch.lines import Line
from hfpipe.batch.records import InvalidJSON, Record, described
from hfpipe.errors import BackendError, ContextLengthError, OutOfMemory, UnsupportedOption
from hfpipe.types import Completion, Usage

OPENAI = OpenAIFormat(model="smollm2")
FORMATS = [Format(), OPENAI]
HI = [{"role": "user", "content": "Hi"}]
CHAT = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt", "messages": HI}}
TEXT = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "gpt", "prompt": "Hi"}}
ODD = st.sampled_from(
    ['a", "text": "', "\\", '\\"', '"', "é", "\ud83d", "\n", "\u2028", "", '", "error": null}\n', "😀"]
)
IDS = st.text(st.characters(), max_size=20) | st.lists(ODD, max_size=3).map("".join)


def failed(error):
    return Completion("", "half an ans", "error", error=error)


ANSWERS = st.one_of(
    st.builds(Completion, st.just(""), IDS, st.sampled_from(["stop", "length"]), st.just(Usage(3, 4)) | st.none()),
    st.sampled_from([failed(kind("No.")) for kind in (BackendError, InvalidJSON, UnsupportedOption)]),
)


def read(value, number=7):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return OPENAI.read_record(Line(number, content, b""))


def chat(**body):
    return read({**CHAT, "body": {**CHAT["body"], **body}})


def text(**body):
    return read({**TEXT, "body": {**TEXT["body"], **body}})


def written(record, answer):
    return json.loads(OPENAI.result_line(record, answer))


# Results


def test_a_result():
    line = Format().result_line(Record(1, "é"), Completion("0", 'Größe\n"', "length", Usage(3, 4)))
    assert line.decode() == (
        '{"id": "é", "text": "Größe\\n\\"", "finish_reason": "length",'
        ' "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, "error": null}\n'
    )
    error = {"type": "context_length", "message": "Long."}
    line = Format().result_line(Record(1, "a"), failed(ContextLengthError("Long.", hint="Cut it.")))
    assert json.loads(line) == {"id": "a", "text": "", "finish_reason": "error", "usage": None, "error": error}


@pytest.mark.parametrize("form", FORMATS, ids=["hfpipe", "openai"])
@given(record_id=IDS, answer=ANSWERS, asked=st.sampled_from([{"messages": tuple(HI)}, {"prompt": "Hi"}]))
@example(record_id="\ud83d", answer=Completion("0", "\ude00", "stop"), asked={})
def test_any_result_is_one_line_that_is_found_again(form, record_id, answer, asked):
    line = form.result_line(Record(1, record_id, **asked), answer)
    text = line.decode()
    assert text.splitlines() == [text[:-1]]
    assert line.endswith(b"}\n")
    # Two halves of a character that met are read as one.
    whole = json.loads(json.dumps([record_id, answer.text]))
    error = answer.error and described(answer.error)["type"]
    assert form.read_result(line) == Result(whole[0], error, "" if error else whole[1])
    # However somebody has written it anew.
    again = json.dumps(dict(reversed(json.loads(line).items())), separators=(",", ":"))
    assert form.read_result(again.encode() + b"\r\n") == form.read_result(line)


@pytest.mark.parametrize("form", FORMATS, ids=["hfpipe", "openai"])
@pytest.mark.parametrize("line", [b"", b"\n", b"{}\n", b"[]\n", b'{"id": 1}\n', b"\0" * 9, b"{" * 99_999, b"\xff\n"])
def test_what_is_no_result(form, line):
    assert form.read_result(line) is None


# OpenAI's requests


def test_requests():
    assert read(CHAT) == Record(7, "a", messages=tuple(HI))
    assert read(TEXT) == Record(7, "a", prompt="Hi", raw=True)
    assert text(prompt=["Hi"]).prompt == "Hi"
    record = chat(max_completion_tokens=5, temperature=0, stop=None, seed=1, top_k=3)
    assert record.overrides == {"max_tokens": 5, "temperature": 0, "seed": 1, "top_k": 3}
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    record = chat(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert record.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"})


@pytest.mark.parametrize(("given", "expected"), [({"custom_id": 5}, "5"), ({"id": "b"}, "b"), ({}, "7")])
def test_ids(given, expected):
    del (unnamed := {**CHAT})["custom_id"]
    assert read({**unnamed, **given}).id == expected


@pytest.mark.parametrize(
    "harmless",
    [
        {"stream": True, "stream_options": {"include_usage": True}, "store": True, "user": "u", "metadata": {"a": "b"}},
        {"n": 1, "logprobs": False, "top_logprobs": 0, "presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "logit_bias": {}, "echo": False},
        {"n": None, "logprobs": None, "response_format": None, "tools": None, "whatever": None},
        {"service_tier": "flex", "safety_identifier": "x", "prompt_cache_key": "y", "modalities": ["text"]},
    ],
)
def test_what_changes_no_text_is_passed_over(harmless):
    assert chat(**harmless) == Record(7, "a", messages=tuple(HI))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"n": 2}, "hfpipe does not take n = 2."),
        ({"logprobs": True}, "hfpipe does not take logprobs = true."),
        ({"response_format": {"type": "json_object"}}, "hfpipe does not take response_format."),
        ({"tools": [{"type": "function"}]}, "hfpipe does not take tools."),
        ({"presence_penalty": 0.5}, "hfpipe does not take presence_penalty = 0.5."),
        ({"max_token": 5}, "hfpipe does not take max_token = 5. Did you mean max_tokens?"),
        ({"question": ["Why?"]}, "hfpipe does not take question."),
    ],
)
def test_what_would_change_the_text_is_the_requests_error(extra, said):
    for record in (chat(**extra), text(**extra)):
        assert described(record.error) == {"type": "unknown_option", "message": said}


@pytest.mark.parametrize(
    ("request_", "kind", "said"),
    [
        ({**CHAT, "url": "/v1/embeddings"}, "invalid_record", "the url /v1/chat/completions or"),
        ({**CHAT, "method": "GET"}, "invalid_record", "A request must have the method POST"),
        ({}, "invalid_record", "the url"),
        ({**CHAT, "body": None}, "invalid_record", "The body of a request must be an object, not null."),
        ({**CHAT, "body": {}}, "invalid_record", "A request to /v1/chat/completions needs messages."),
        ({**TEXT, "body": {"prompt": None}}, "invalid_record", "A request to /v1/completions needs prompt."),
        ({**TEXT, "body": CHAT["body"]}, "unknown_option", "hfpipe does not take messages."),
        ({**CHAT, "max_tokens": 5}, "invalid_record", "Unknown field max_tokens in a batch request"),
        ({**TEXT, "body": {"prompt": ["a", "b"]}}, "unknown_option", "one prompt a request"),
        ({**TEXT, "body": {"prompt": [1]}}, "unknown_option", "one prompt a request"),
        ({**TEXT, "body": {"prompt": 1}}, "invalid_record", "prompt must be text, not a number."),
        (
            {**TEXT, "body": {"prompt": "x", "max_tokens": 0}},
            "invalid_record",
            "max_tokens must be a whole number from 1",
        ),
    ],
)
def test_requests_that_are_refused(request_, kind, said):
    error = described(read(request_).error)
    assert error["type"] == kind
    assert said in error["message"]


# OpenAI's responses


def test_a_chat_completion():
    line = written(read(CHAT), Completion("0", "Größe", "stop", Usage(3, 4)))
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("a", None, 200)
    body = ChatCompletion.model_validate(line["response"]["body"], strict=True)
    (choice,) = body.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("Größe", "assistant", "stop")
    assert (body.model, body.created, body.usage.total_tokens) == ("smollm2", 0, 7)
    assert set(body.model_dump(exclude_unset=True)) <= set(ChatCompletion.model_fields)


def test_a_text_completion():
    line = written(read(TEXT), Completion("0", "Größe", "length", Usage(3, 4)))
    body = TextCompletion.model_validate(line["response"]["body"], strict=True)
    (choice,) = body.choices
    assert (choice.text, choice.finish_reason, body.object) == ("Größe", "length", "text_completion")
    assert (body.model, body.created, body.usage.prompt_tokens) == ("smollm2", 0, 3)
    assert set(body.model_dump(exclude_unset=True)) <= set(TextCompletion.model_fields)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (UnsupportedOption("No."), 400, "invalid_request_error", "unknown_option"),
        (ContextLengthError("No."), 400, "invalid_request_error", "context_length"),
        (BackendError("No."), 500, "server_error", "engine"),
        (OutOfMemory("No."), 500, "server_error", "out_of_memory"),
    ],
)
def test_a_request_that_failed_has_a_response_that_says_so(error, status, kind, code):
    line = written(read(CHAT), failed(error))
    assert (line["error"], line["response"]["status_code"]) == (None, status)
    found = ErrorObject.model_validate(line["response"]["body"]["error"], strict=True)
    assert (found.message, found.type, found.code, found.param) == ("No.", kind, code, None)


def test_a_line_that_made_no_request_has_no_response():
    record = read(b"{")
    line = written(record, failed(record.error))
    assert (line["custom_id"], line["response"], line["error"]["code"]) == ("7", None, "invalid_json")
    assert set(line["error"]) == {"code", "message"}


def test_ids_are_derived_from_the_record():
    done = Completion("0", "x", "stop")
    one, again, other = (written(read(CHAT, number), done) for number in (7, 7, 8))
    assert one == again
    assert one["id"] != other["id"]
    ids = [one["id"], one["response"]["request_id"], one["response"]["body"]["id"]]
    assert [name.rpartition("_")[0] or name.partition("-")[0] for name in ids] == ["batch_req", "req", "chatcmpl"]
    assert written(read(TEXT), done)["response"]["body"]["id"].startswith("cmpl-")


ANY_ID = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=1)


@given(form=st.sampled_from(FORMATS), given_ids=st.tuples(ANY_ID, ANY_ID), broken=st.booleans())
@example(form=FORMATS[0], given_ids=("", 7), broken=False)
def test_the_id_of_a_line_is_that_of_its_record(form, given_ids, broken):
    """Whatever the line is: by it, a result is found again."""
    content = json.dumps({"custom_id": given_ids[0], "id": given_ids[1], "prompt": "Hi"}).encode()[
        : -1 if broken else None
    ]
    line = Line(5, content, b"")
    assert form.id_of(line) == form.read_record(line).id
