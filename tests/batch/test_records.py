"""What a line asks, or why it cannot be answered."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hfpipe import errors
from hfpipe.batch.lines import Line
from hfpipe.batch.records import Record, RecordError, read_id, read_record
from hfpipe.types import GenerationOptions

TEXT = st.text(st.characters(), max_size=10)  # lone surrogates too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KNOWN = ["id", "custom_id", "prompt", "messages", "question", "max_tokens", "temperature", "stop", "metadata", "n"]
OBJECTS = st.dictionaries(st.sampled_from(KNOWN) | TEXT, VALUES, max_size=5)
HI = [{"role": "user", "content": "Hi"}]


def line_of(value, number=7):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Line(number, content, b"")


def read(value, *names):
    return read_record(line_of(value), names)


def error_of(value, *names):
    record = read(value, *names)
    assert record.error is not None, record
    return record.error


# What it asks


def test_the_forms_of_a_record():
    assert read({"question": "Why?", "context": "é"}) == Record(7, "7", {"question": "Why?", "context": "é"})
    assert read({"prompt": "Why?"}) == Record(7, "7", prompt="Why?")
    assert read({"prompt": "Why?", "language": "fr"}) == Record(7, "7", {"language": "fr"}, prompt="Why?")
    assert read({"messages": HI}) == Record(7, "7", messages=tuple(HI))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"custom_id": "a", "id": "b"}, "a"),
        ({"custom_id": None, "id": "b"}, "b"),
        ({"id": ""}, ""),
        ({"id": 12}, "12"),
        ({"id": 10**30}, "1" + "0" * 30),
        ({"id": 1.5}, "1.5"),
        ({"id": 'ü \u2028 " \\ \ud83d'}, 'ü \u2028 " \\ \ud83d'),
        ({"id": None}, "7"),
        ({}, "7"),
    ],
)
def test_ids(given, expected):
    given = {**given, "question": "Why?"}
    record = read(given)
    assert (record.id, record.error) == (expected, None)
    assert read_id(line_of(given)) == expected


@pytest.mark.parametrize("wrong", [True, [], ["a"], {}])
def test_an_id_of_the_wrong_type(wrong):
    for asked in ({"id": wrong, "prompt": "x"}, {"custom_id": wrong, "id": "a"}):
        record = read(asked)
        assert record.error.type == "invalid_record"
        assert "id must be text or a number" in record.error.message
        assert record.id == read_id(line_of(asked)) == "7"


@pytest.mark.parametrize(
    ("value", "text"), [("", ""), (1, "1"), (1.5, "1.5"), (-0.0, "-0.0"), (True, "true"), (False, "false")]
)
def test_numbers_and_booleans_become_text(value, text):
    assert read({"question": value}, "question").variables == {"question": text}


def test_half_a_character_is_replaced():
    """A tokenizer does not take it. A whole one, written as two escapes, is whole."""
    record = read(b'{"prompt": "a \\ud83d b \\ud83d\\ude00", "x": "\\udc00"}')
    assert (record.prompt, record.variables) == ("a \ufffd b \U0001f600", {"x": "\ufffd"})
    assert read({"messages": [{"role": "user", "content": "\ud83d"}]}).messages[0]["content"] == "\ufffd"
    assert read({"prompt": "x", "stop": "\ud83d"}).overrides == {"stop": ("\ufffd",)}


def test_null_is_not_given():
    given = {"prompt": None, "question": "Why?", "temperature": None, "messages": None, "max_token": None}
    assert read(given, "question") == Record(7, "7", {"question": "Why?"})


def test_what_the_template_names_is_a_variable():
    given = {"id": 5, "temperature": "hot", "max_tokens": 3, "metadata": "m", "max_token": 1, "messages": "none"}
    record = read(given, "id", "temperature", "metadata", "max_token", "messages")
    assert record.id == "5"
    assert record.variables == {
        "id": "5", "temperature": "hot", "metadata": "m", "max_token": "1", "messages": "none"
    }  # fmt: skip
    assert record.overrides == {"max_tokens": 3}
    assert read({"prompt": "x", "seed": 1}, "seed", "prompt") == Record(7, "7", {"seed": "1"}, prompt="x")


def test_a_list_is_wrong_only_where_the_template_uses_it():
    given = {"question": "Why?", "choices": ["a"], "source": {"x": 1}}
    assert read(given, "question").variables == {"question": "Why?"}
    assert error_of(given, "choices").message == "choices must be text or a number, not a list."
    assert error_of(given, "source").message == "source must be text or a number, not an object."


def test_an_id_and_overrides_can_be_all():
    """The variables may come from the command line."""
    assert read({"id": "a", "seed": 3}) == Record(7, "a", overrides={"seed": 3})


# Overrides


def test_overrides_are_by_the_names_of_the_options():
    given = {
        "max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5,
        "stop": ["a", "b"], "seed": 9
    }  # fmt: skip
    for asked in ({"prompt": "x"}, {"messages": HI}, {"question": "x"}):
        record = read({**asked, **given})
        assert record.error is None
        assert record.options(GenerationOptions()) == GenerationOptions(**{**given, "stop": ("a", "b")})


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens"])
def test_three_names_of_one_option(name):
    assert read({"prompt": "x", name: 5.0}).overrides == {"max_tokens": 5}
    assert error_of({"prompt": "x", name: 0}).message.startswith("max_tokens must be from 1")
    assert error_of({"prompt": "x", "max_tokens": 6, "max_new_tokens": 7}).message == (
        "max_tokens is given twice, as 6 and as 7."
    )
    assert read({"prompt": "x", "max_tokens": 6, "max_new_tokens": 6}).overrides == {"max_tokens": 6}


def test_what_is_not_overridden_stays():
    base = GenerationOptions(max_tokens=9, temperature=0.5, stop=("x",))
    assert read({"prompt": "x"}).options(base) == base
    assert read({"prompt": "x", "stop": []}).options(base).stop == ()
    assert read({"prompt": "x", "stop": "\n"}).options(base).stop == ("\n",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("max_tokens", float("inf")),
        ("max_tokens", 1e300),
        ("temperature", "hot"),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_k", -1),
        ("min_p", [0.1]),
        ("repetition_penalty", {}),
        ("seed", 2**63),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", ""),
        ("stop", ["a", ""]),
    ],
)
@pytest.mark.parametrize("asked", [{"prompt": "x"}, {"messages": HI}, {"question": "x"}], ids=str)
def test_a_wrong_override_is_the_records_error(asked, name, value):
    record = read({**asked, "id": "a", name: value})
    assert record.id == "a"
    assert record.error.type == "invalid_record"
    assert name in record.error.message or "stop string" in record.error.message
    assert len(record.error.message) <= 500


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("max-tokens", "max_tokens"),
        ("Temperature", "temperature"),
        ("temprature", "temperature"),
        ("topK", "top_k"),
        ("repetition_penality", "repetition_penalty"),
    ],
)
def test_a_misspelt_option_is_told(name, meant):
    for asked in ({"prompt": "x"}, {"messages": HI}, {"question": "x"}):
        error = error_of({**asked, name: 1}, "question")
        assert error.type == "unknown_option"
        assert error.message.endswith(f" Did you mean {meant}?")


def test_an_option_of_other_engines_is_told_unless_it_asks_for_nothing():
    for name, neutral, wrong in [("frequency_penalty", 0, 0.5), ("logit_bias", {}, {"5": 1}), ("num_beams", 1, 4)]:
        for asked in ({"prompt": "x"}, {"messages": HI}, {"question": "x"}):
            assert read({**asked, name: neutral}, "question").error is None
            error = error_of({**asked, name: wrong}, "question")
            assert error.type == "unknown_option"
            assert name in error.message


def test_columns_of_a_dataset_are_no_options():
    given = dict.fromkeys(["answer", "source", "top", "seeds", "stops", "step", "tokens", "model", "n", "user"], "x")
    assert read({**given, "question": "Why?"}, "question").variables == {**given, "question": "Why?"}


# Messages


def test_messages():
    turns = [
        {"role": "system", "content": "Be brief.", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}], "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [], "refusal": None},
        {"role": "critic", "content": []},
    ]
    assert read({"messages": turns[:3], "id": "a", "metadata": {"x": 1}, "model": "m", "stream": True}).messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a b", "name": "Ann"},
        {"role": "assistant", "content": ""},
    )
    assert error_of({"messages": turns}).message == "messages[3].content must be text, not null."


@pytest.mark.parametrize(
    ("messages", "kind", "said"),
    [
        ([], "invalid_record", "at least one message"),
        ("Hi", "invalid_record", "must be a list"),
        (["Hi"], "invalid_record", "messages[0] must be an object, not text."),
        ([*HI, {"content": "x"}], "invalid_record", "messages[1] has no role."),
        ([{"role": 1, "content": "x"}], "invalid_record", "messages[0] has no role."),
        ([{"role": "user"}], "invalid_record", "messages[0].content must be text, not null."),
        ([{"role": "user", "content": 1}], "invalid_record", "messages[0].content must be text, not a number."),
        ([{"role": "user", "content": "x", "name": 1}], "invalid_record", "messages[0].name must be text"),
        ([{"role": "user", "content": ["x"]}], "unknown_option", "messages[0].content[0] is text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "invalid_record", "content[0].text must be text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "unknown_option",
            "messages[0].content[0] is image_url, and hfpipe takes text alone.",
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "unknown_option",
            "messages[0] has tool_calls",
        ),
    ],
)
def test_wrong_messages(messages, kind, said):
    error = error_of({"messages": messages})
    assert error.type == kind
    assert said in error.message


@pytest.mark.parametrize("extra", [{"question": "x"}, {"tools": [{"type": "function"}]}, {"n": 2}, {"logprobs": True}])
def test_beside_messages_nothing_is_dropped_in_silence(extra):
    error = error_of({"messages": HI, **extra}, "question")
    assert error.type == "unknown_option"
    assert error.message.startswith(f"hfpipe does not take {next(iter(extra))}")


def test_a_prompt_and_messages():
    error = error_of({"prompt": "x", "messages": HI})
    assert error == RecordError("invalid_record", "A record has a prompt or messages, not both.")


# What is no record


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"{", "invalid_json", "Line 7 is not JSON: "),
        (b'{"a": 1} x', "invalid_json", "Line 7 is not JSON: Extra data at column 10."),
        (b"Why?", "invalid_json", "Line 7 is not JSON: Expecting value at column 1."),
        (b'{"prompt": "\xff"}', "invalid_json", "Line 7 is not UTF-8 text: byte 0xff at 12."),
        (b'{"prompt": "\xed\xa0\x80"}', "invalid_json", "Line 7 is not UTF-8 text"),
        (b'{"a": "\t"}', "invalid_json", "Line 7 is not JSON: "),
        (b"[" * 100_000, "invalid_json", "Line 7 is not JSON: "),
        (b'{"a": ' + b"1" * 5000 + b"}", "invalid_json", "Line 7 is not JSON: "),
        (b"[1]", "invalid_record", "Line 7 is a list, not an object."),
        (b'"x"', "invalid_record", "Line 7 is text, not an object."),
        (b"1", "invalid_record", "Line 7 is a number, not an object."),
        (b"true", "invalid_record", "Line 7 is a boolean, not an object."),
        (b"null", "invalid_record", "Line 7 is null, not an object."),
        (b"{}", "invalid_record", "The record is empty."),
        (b'{"prompt": null}', "invalid_record", "The record is empty."),
        (b'{"prompt": 5}', "invalid_record", "prompt must be text, not a number."),
        (b'{"prompt": ["a", "b"]}', "invalid_record", "prompt must be text, not a list."),
    ],
)
def test_what_is_no_record(content, kind, said):
    record = read(content)
    assert record.id == "7"
    assert record.error.type == kind
    assert said in record.error.message
    assert "\n" not in record.error.message


def test_a_long_line():
    text = "x" * 10_000_000
    assert read({"prompt": text}).prompt == text


@given(OBJECTS | VALUES, st.sets(st.sampled_from(KNOWN)))
@example({"": None}, set())
def test_any_value_is_a_record_or_its_error(value, names):
    line = line_of(value)
    record = read_record(line, names)
    assert record.id == read_id(line)
    assert record == read_record(line, names)
    if record.error:
        assert record.error.message
        assert (record.variables, record.prompt, record.messages, record.overrides) == ({}, None, (), {})
        return
    record.options(GenerationOptions())
    assert not (record.prompt is not None and record.messages)
    for text in (*record.variables.values(), record.prompt or "", *(m["content"] for m in record.messages)):
        text.encode()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_its_error(content):
    assert read(content).id == read_id(line_of(content))


# Errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.MissingVariable, "missing_variable"),
        (errors.TemplateError, "invalid_record"),
        (errors.UsageError, "invalid_record"),
        (errors.UnsupportedOption, "unknown_option"),
        (errors.ContextLengthError, "context_length"),
        (errors.OutOfMemory, "out_of_memory"),
        (errors.BackendError, "engine"),
        (errors.ModelError, "engine"),
        (errors.HFPipeError, "engine"),
    ],
)
def test_errors_have_words(error, kind):
    assert RecordError.of(error("It broke.")) == RecordError(kind, "It broke.")


def test_a_long_message_is_cut():
    error = RecordError.of(errors.UsageError("x" * 1000))
    assert len(error.message) == 500
    assert error.message.endswith("x…")


def test_a_missing_variable_is_one():
    from hfpipe.text.templates import parse_template

    record = read({"context": "x"}, "question")
    with pytest.raises(errors.MissingVariable) as caught:
        parse_template("qa").fill(record.variables)
    assert RecordError.of(caught.value) == RecordError(
        "missing_variable", "No value for {question} in qa; given: context."
    )
