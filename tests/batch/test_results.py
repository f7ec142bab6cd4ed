"""A result is one line, and the line says whose it is."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hfpipe.batch.formats import HFPipeFormat, Result, encode
from hfpipe.batch.openai_format import OpenAIFormat
from hfpipe.batch.records import Record, RecordError, outcome_of
from hfpipe.errors import BackendError, ContextLengthError
from hfpipe.types import Completion, Usage

TEXT = st.text(st.characters(), max_size=20)
ODD = st.sampled_from(
    ['a", "text": "', "\\", '\\"', '"', "é", "\ud83d", "\n", "\u2028", "", '", "error": null}\n', "😀"]
)
IDS = TEXT | st.lists(ODD, max_size=3).map("".join)
ERROR = RecordError("engine", "It broke.")
OUTCOMES = st.one_of(
    st.builds(Completion, st.just("0"), IDS, st.sampled_from(["stop", "length"]), st.just(Usage(3, 4)) | st.none()),
    st.builds(RecordError, st.sampled_from(["engine", "invalid_json", "unknown_option"]), IDS),
)
FORMATS = [HFPipeFormat(), OpenAIFormat("smollm2")]


def test_a_result():
    line = FORMATS[0].result_line(Record(1, "é"), Completion("0", 'Größe\n"', "length", Usage(3, 4)))
    assert line.decode() == (
        '{"id": "é", "text": "Größe\\n\\"", "finish_reason": "length",'
        ' "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, "error": null}\n'
    )


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (RecordError("invalid_json", "No."), {"type": "invalid_json", "message": "No."}),
        (
            Completion("0", "half an ans", "error", error=ContextLengthError("Long.", hint="Cut it.")),
            {"type": "context_length", "message": "Long."},
        ),
        (Completion("0", "", "error", error=BackendError("Broke.")), {"type": "engine", "message": "Broke."}),
        (Completion("0", "", "error"), {"type": "engine", "message": "The engine gave no reason."}),
    ],
)
def test_a_failure(outcome, error):
    outcome = outcome if isinstance(outcome, RecordError) else outcome_of(outcome)
    line = FORMATS[0].result_line(Record(1, "a"), outcome)
    assert json.loads(line) == {"id": "a", "text": "", "finish_reason": "error", "usage": None, "error": error}
    assert FORMATS[0].read_result(line) == Result("a", error["type"])


@pytest.mark.parametrize("form", FORMATS, ids=["hfpipe", "openai"])
@given(record_id=IDS, outcome=OUTCOMES)
@example(record_id="\ud83d", outcome=Completion("0", "\ude00", "stop"))
def test_any_result_is_one_line_that_is_found_again(form, record_id, outcome):
    record = Record(1, record_id)
    line = form.result_line(record, outcome)
    assert line == form.result_line(record, outcome)
    text = line.decode()
    assert text.splitlines() == [text[:-1]]
    assert line.endswith(b"}\n")
    # Two halves of a character that met are read as one.
    whole = json.loads(json.dumps(record_id))
    assert form.read_result(line) == Result(whole, outcome.type if isinstance(outcome, RecordError) else None)
    # However somebody has written it anew.
    again = json.dumps(dict(reversed(json.loads(line).items())), separators=(",", ":"))
    assert form.read_result(again.encode() + b"\r\n") == form.read_result(line)


@given(
    st.dictionaries(
        st.sampled_from(["id", "text", "error", "custom_id", "response", "x"]),
        IDS | st.none() | st.just({}),
        max_size=5,
    )
)
@example({"id": 'a", "text": "b'})
@example({"id": "a\\", "text": "b", "error": None})
def test_no_line_fools_the_quick_look(value):
    line = encode(value)
    fine = isinstance(value.get("id"), str) and "error" in value
    whole = json.loads(json.dumps(value))
    errors = {str: "unknown", dict: "None", type(None): None}
    assert FORMATS[0].read_result(line) == (Result(whole["id"], errors[type(value["error"])]) if fine else None)


@pytest.mark.parametrize("form", FORMATS, ids=["hfpipe", "openai"])
@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{}\n", b"[]\n", b"1\n", b'{"id": 1}\n', b"\0" * 9, b"{" * 99_999, b"\xff\n"]
)
def test_what_is_no_result(form, line):
    assert form.read_result(line) is None


def test_the_text_is_not_taken_for_the_end():
    line = FORMATS[0].result_line(Record(1, "a"), Completion("0", '", "error": null}', "stop", None))
    assert FORMATS[0].read_result(line) == Result("a")
    failed = FORMATS[0].result_line(Record(1, "a"), RecordError("engine", '", "error": null}'))
    assert FORMATS[0].read_result(failed) == Result("a", "engine")
