"""OpenAI's envelope, checked with the types of OpenAI's own package."""

import json

import pytest
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion
from openai.types.shared import ErrorObject

from hfpipe.batch.lines import Line
from hfpipe.batch.openai_format import OpenAIFormat
from hfpipe.batch.records import Record, RecordError, outcome_of
from hfpipe.errors import BackendError, ContextLengthError, OutOfMemory
from hfpipe.types import Completion, Usage

FORM = OpenAIFormat("smollm2")
HI = [{"role": "user", "content": "Hi"}]
CHAT = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt", "messages": HI}}
TEXT = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "gpt", "prompt": "Hi"}}


def read(value, number=7):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return FORM.read_record(Line(number, content, b""))


def chat(**body):
    return read({**CHAT, "body": {**CHAT["body"], **body}})


def text(**body):
    return read({**TEXT, "body": {**TEXT["body"], **body}})


def written(record, outcome):
    return json.loads(FORM.result_line(record, outcome if isinstance(outcome, RecordError) else outcome_of(outcome)))


# Requests


def test_requests():
    assert read(CHAT) == Record(7, "a", messages=tuple(HI))
    assert read(TEXT) == Record(7, "a", prompt="Hi", raw=True)
    assert text(prompt=["Hi"]).prompt == "Hi"
    record = chat(max_completion_tokens=5, temperature=0, stop=None, seed=1, top_k=3)
    assert record.overrides == {"max_tokens": 5, "temperature": 0, "seed": 1, "top_k": 3}


def test_ids():
    assert read({**CHAT, "custom_id": 5}).id == "5"
    del (unnamed := {**CHAT})["custom_id"]
    assert read(unnamed).id == "7"
    assert read({**unnamed, "id": "b"}).id == "b"
    wrong = read({**CHAT, "custom_id": []})
    assert (wrong.id, wrong.error.type) == ("7", "invalid_record")
    assert FORM.read_id(Line(7, json.dumps(CHAT).encode(), b"")) == "a"


def test_messages():
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    record = chat(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert record.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"})


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
        ({"logprobs": 5}, "hfpipe does not take logprobs = 5."),
        ({"response_format": {"type": "json_object"}}, "hfpipe does not take response_format."),
        ({"tools": [{"type": "function"}]}, "hfpipe does not take tools."),
        ({"presence_penalty": 0.5}, "hfpipe does not take presence_penalty = 0.5."),
        ({"max_token": 5}, "hfpipe does not take max_token. Did you mean max_tokens?"),
        ({"question": "Why?"}, "hfpipe does not take question."),
    ],
)
def test_what_would_change_the_text_is_the_requests_error(extra, said):
    assert chat(**extra).error == text(**extra).error == RecordError("unknown_option", said)


@pytest.mark.parametrize(
    ("request_", "kind", "said"),
    [
        ({**CHAT, "url": "/v1/embeddings"}, "invalid_record", "The url of a request must be /v1/chat/completions or"),
        ({**CHAT, "url": None}, "invalid_record", "The url"),
        ({**CHAT, "method": "GET"}, "invalid_record", "The method of a request must be POST."),
        ({**CHAT, "body": None}, "invalid_record", "The body of a request must be an object, not null."),
        ({**CHAT, "body": {}}, "invalid_record", "A request to /v1/chat/completions needs messages."),
        ({**TEXT, "body": {"prompt": None}}, "invalid_record", "A request to /v1/completions needs prompt."),
        ({**TEXT, "body": CHAT["body"]}, "unknown_option", "hfpipe does not take messages."),
        ({**CHAT, "max_tokens": 5}, "invalid_record", "Unknown field max_tokens in a batch request"),
        ({}, "invalid_record", "The url"),
        ({**TEXT, "body": {"prompt": ["a", "b"]}}, "unknown_option", "one prompt a request"),
        ({**TEXT, "body": {"prompt": [1, 2]}}, "unknown_option", "one prompt a request"),
        ({**TEXT, "body": {"prompt": 1}}, "invalid_record", "prompt must be text, not a number."),
        ({**TEXT, "body": {"prompt": "x", "max_tokens": 0}}, "invalid_record", "max_tokens must be from 1"),
        (
            {**CHAT, "body": {"messages": [{"role": "tool", "content": "x"}]}},
            "invalid_record",
            "messages[0] has the role tool; known are system, developer, user, assistant.",
        ),
        (
            {**CHAT, "body": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}},
            "unknown_option",
            "messages[0].content[0] is image_url, and hfpipe takes text alone.",
        ),
    ],
)
def test_requests_that_are_refused(request_, kind, said):
    record = read(request_)
    assert record.error.type == kind
    assert said in record.error.message


# Responses


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
    ("outcome", "status", "kind", "code"),
    [
        (RecordError("unknown_option", "No."), 400, "invalid_request_error", "unknown_option"),
        (ContextLengthError("No."), 400, "invalid_request_error", "context_length"),
        (BackendError("No."), 500, "server_error", "engine"),
        (OutOfMemory("No."), 500, "server_error", "out_of_memory"),
    ],
)
def test_a_request_that_failed_has_a_response_that_says_so(outcome, status, kind, code):
    if not isinstance(outcome, RecordError):
        outcome = Completion("0", "half", "error", error=outcome)
    line = written(read(CHAT), outcome)
    assert line["error"] is None
    assert line["response"]["status_code"] == status
    error = ErrorObject.model_validate(line["response"]["body"]["error"], strict=True)
    assert (error.message, error.type, error.code, error.param) == ("No.", kind, code, None)
    assert FORM.read_result(json.dumps(line).encode()).error == code


def test_a_line_that_made_no_request_has_no_response():
    record = read(b"{")
    line = written(record, record.error)
    assert (line["custom_id"], line["response"]) == ("7", None)
    assert line["error"]["code"] == "invalid_json"
    assert set(line["error"]) == {"code", "message"}
    assert FORM.read_result(json.dumps(line).encode()).error == "invalid_json"


def test_ids_are_derived_from_the_record():
    done = Completion("0", "x", "stop")
    one, again, other = (written(read(CHAT, number), done) for number in (7, 7, 8))
    assert one == again
    assert one["id"] != other["id"]
    assert len({one["id"], one["response"]["request_id"], one["response"]["body"]["id"]}) == 3
    assert one["id"].startswith("batch_req_")
    assert one["response"]["body"]["id"].startswith("chatcmpl-")
    assert written(read(TEXT), done)["response"]["body"]["id"].startswith("cmpl-")
