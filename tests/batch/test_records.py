"""What a line asks, or why it cannot be answered."""

import json
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hfpipe import errors
from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Line
from hfpipe.batch.records import Record, described
from hfpipe.errors import MissingVariable, TemplateError
from hfpipe.text.chat import ChatTemplate
from hfpipe.text.templates import PromptTemplate, parse_template
from hfpipe.types import GenerationOptions, TextRequest
from tests import tiny

TEXT = st.text(st.characters(), max_size=10)  # lone surrogates too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KNOWN = ["id", "custom_id", "prompt", "messages", "question", "max_tokens", "temperature", "stop", "metadata", "n"]
OBJECTS = st.dictionaries(st.sampled_from(KNOWN) | TEXT, VALUES, max_size=5)
HI = [{"role": "user", "content": "Hi"}]
FORMS = [{"prompt": "x"}, {"messages": HI}, {"question": "x"}]
CHAT = ChatTemplate(tiny.CHAT_TEMPLATE, {}, "tiny")
RAW = PromptTemplate(parse_template("raw"), "tiny")


def line_of(value, number=7):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Line(number, content, b"")


def read(value, *names):
    return Format(frozenset(names)).read_record(line_of(value))


def error_of(value, *names):
    """Its type and message."""
    record = read(value, *names)
    assert record.error is not None, record
    return tuple(described(record.error).values())


# What it asks


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        ({"question": "Why?", "context": "é"}, [], {"variables": {"question": "Why?", "context": "é"}}),
        ({"prompt": "Why?"}, [], {"prompt": "Why?"}),
        ({"prompt": "Why?", "language": "fr"}, [], {"variables": {"language": "fr"}, "prompt": "Why?"}),
        ({"messages": HI}, [], {"messages": tuple(HI)}),
        # Numbers and booleans become text, and null is not given.
        ({"a": 1, "b": 1.5, "c": -0.0, "d": True}, [], {"variables": {"a": "1", "b": "1.5", "c": "-0.0", "d": "true"}}),
        (
            {"prompt": None, "question": "Why?", "temperature": None, "messages": None, "max_token": None},
            ["question"],
            {"variables": {"question": "Why?"}},
        ),
        # What the template names is a variable.
        (
            {"id": 7, "temperature": "hot", "max_tokens": 3, "metadata": "m", "max_token": 1, "messages": "none"},
            ["id", "temperature", "metadata", "max_token", "messages"],
            {
                "variables": {"id": "7", "temperature": "hot", "metadata": "m", "max_token": "1", "messages": "none"},
                "overrides": {"max_tokens": 3},
            },
        ),
        ({"prompt": "x", "seed": 1}, ["seed", "prompt"], {"variables": {"seed": "1"}, "prompt": "x"}),
        # A list is an error only where the template uses it.
        ({"question": "Why?", "choices": ["a"], "source": {"x": 1}}, ["question"], {"variables": {"question": "Why?"}}),
        # The variables may come from the command line.
        ({"seed": 3}, [], {"overrides": {"seed": 3}}),
    ],
)
def test_the_forms_of_a_record(given, names, expected):
    assert read(given, *names) == Record(7, "7", **expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"custom_id": "a", "id": "b"}, "a"),
        ({"custom_id": None, "id": "b"}, "b"),
        ({"id": ""}, ""),
        ({"id": 10**30}, "1" + "0" * 30),
        ({"id": 1.5}, "1.5"),
        ({"id": 'ü \u2028 " \\ \ud83d'}, 'ü \u2028 " \\ \ud83d'),
        ({"id": None}, "7"),
        ({}, "7"),
    ],
)
def test_ids(given, expected):
    given = {**given, "question": "Why?"}
    assert (read(given).id, read(given).error) == (expected, None)


@pytest.mark.parametrize("wrong", [True, [], {}])
def test_an_id_of_the_wrong_type(wrong):
    for asked in ({"id": wrong, "prompt": "x"}, {"custom_id": wrong, "id": "a"}):
        kind, said = error_of(asked)
        assert (kind, read(asked).id) == ("invalid_record", "7")
        assert "id must be text or a number" in said


def test_columns_of_a_dataset_are_no_options():
    given = dict.fromkeys(["answer", "source", "top", "seeds", "stops", "step", "tokens", "model", "n", "user"], "x")
    assert read({**given, "question": "Why?"}, "question").variables == {**given, "question": "Why?"}


# Overrides


@pytest.mark.parametrize("asked", FORMS, ids=str)
def test_overrides_are_by_the_names_of_the_options(asked):
    given = {
        "max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5,
        "stop": ["a", "b"], "seed": 9
    }  # fmt: skip
    assert read({**asked, **given}).overrides == {**given, "stop": ("a", "b")}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens"])
def test_three_names_of_one_option(name):
    assert read({"prompt": "x", name: 5.0}).overrides == {"max_tokens": 5}
    assert error_of({"prompt": "x", name: 0})[1].startswith("max_tokens must be a whole number from 1")
    assert read({"prompt": "x", "max_tokens": 6, "max_new_tokens": 6}).overrides == {"max_tokens": 6}
    twice = "max_tokens is given twice, as 6 and as 7."
    assert error_of({"prompt": "x", "max_tokens": 6, "max_new_tokens": 7}) == ("invalid_record", twice)


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
        ("stop", ["a", ""]),
    ],
)
@pytest.mark.parametrize("asked", FORMS, ids=str)
def test_a_wrong_override_is_the_records_error(asked, name, value):
    kind, said = error_of({**asked, "id": "a", name: value})
    assert kind == "invalid_record"
    assert name in said or "stop string" in said
    assert len(said) <= 500
    assert read({**asked, "id": "a", name: value}).id == "a"


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
    for asked in FORMS:
        said = f"hfpipe does not take {name} = 1. Did you mean {meant}?"
        assert error_of({**asked, name: 1}, "question") == ("unknown_option", said)


@pytest.mark.parametrize(
    ("name", "neutral", "wrong"),
    [("frequency_penalty", 0, 0.5), ("logit_bias", {}, {"5": 1}), ("num_beams", 1, 4), ("target_lang", None, "fr")],
)
def test_an_option_of_other_engines_is_told_unless_it_asks_for_nothing(name, neutral, wrong):
    for asked in FORMS:
        assert read({**asked, name: neutral}, "question").error is None
        kind, said = error_of({**asked, name: wrong}, "question")
        assert kind == "unknown_option"
        assert name in said


# Messages


def test_messages():
    turns = [
        {"role": "system", "content": "Be brief.", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}], "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [], "refusal": None},
    ]
    assert read({"messages": turns, "id": "a", "metadata": {"x": 1}, "model": "m", "stream": True}).messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a b", "name": "Ann"},
        {"role": "assistant", "content": ""},
    )


@pytest.mark.parametrize(
    ("messages", "kind", "said"),
    [
        ([], "invalid_record", "at least one message"),
        ("Hi", "invalid_record", "must be a list"),
        (["Hi"], "invalid_record", "messages[0] must be an object, not text."),
        ([*HI, {"content": "x"}], "invalid_record", "messages[1].role must be text, not null."),
        ([{"role": 1, "content": "x"}], "invalid_record", "messages[0].role must be text, not a number."),
        ([{"role": "user", "content": []}], "invalid_record", "messages[0].content must be text, not null."),
        ([{"role": "user", "content": 1}], "invalid_record", "messages[0].content must be text, not a number."),
        ([{"role": "user", "content": "x", "name": 1}], "invalid_record", "messages[0].name must be text"),
        ([{"role": "user", "content": ["x"]}], "unknown_option", "messages[0].content has a part that is not text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "unknown_option", "hfpipe takes text alone."),
        ([{"role": "user", "content": [{"type": "text"}]}], "invalid_record", "messages[0].content must be text"),
        ([{"role": "a", "content": None, "tool_calls": [{"id": "1"}]}], "unknown_option", "messages[0] has tool_calls"),
    ],
)
def test_wrong_messages(messages, kind, said):
    found, message = error_of({"messages": messages})
    assert found == kind
    assert said in message


@pytest.mark.parametrize("extra", [{"question": "x"}, {"tools": [{"type": "function"}]}, {"n": 2}, {"logprobs": True}])
def test_beside_messages_nothing_is_dropped_in_silence(extra):
    kind, said = error_of({"messages": HI, **extra}, "question")
    assert kind == "unknown_option"
    assert said.startswith(f"hfpipe does not take {next(iter(extra))}")


# What is no record


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"{", "invalid_json", "Line 7 is not JSON: "),
        (b'{"a": 1} x', "invalid_json", "Line 7 is not JSON: Extra data at column 10."),
        (b'{"prompt": "\xff"}', "invalid_json", "Line 7 is not UTF-8 text: byte 0xff at 12."),
        (b'{"a": "\t"}', "invalid_json", "Line 7 is not JSON: "),
        (b"[" * 100_000, "invalid_json", "Line 7 is not JSON: "),
        (b'{"a": ' + b"1" * 5000 + b"}", "invalid_json", "Line 7 is not JSON: "),
        (b"[1]", "invalid_record", "Line 7 is a list, not an object."),
        (b"true", "invalid_record", "Line 7 is a boolean, not an object."),
        (b"null", "invalid_record", "Line 7 is null, not an object."),
        (b"{}", "invalid_record", "The record is empty."),
        (b'{"prompt": null}', "invalid_record", "The record is empty."),
        (b'{"prompt": 5}', "invalid_record", "prompt must be text, not a number."),
        (b'{"prompt": "x", "messages": []}', "invalid_record", "A record has a prompt or messages, not both."),
    ],
)
def test_what_is_no_record(content, kind, said):
    found, message = error_of(content)
    assert (read(content).id, found) == ("7", kind)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["choices", "source"])
def test_a_list_or_an_object_is_no_variable(name):
    kind, said = error_of({"choices": ["a"], "source": {"x": 1}}, name)
    assert (kind, said.partition(", not ")[0]) == ("invalid_record", f"{name} must be text or a number")


@given(OBJECTS | VALUES, st.sets(st.sampled_from(KNOWN)))
@example({"": None}, set())
def test_any_value_is_a_record_or_its_error(value, names):
    line, form = line_of(value), Format(frozenset(names))
    record = form.read_record(line)
    if record.error:
        assert record.error.message
        assert record == Record(7, record.id, error=record.error)
        return
    assert not (record.prompt is not None and record.messages)
    with suppress(TemplateError):
        record.request(RAW, GenerationOptions())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_its_error(content):
    assert read(content).number == 7


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
def test_errors_have_words_and_bounded_messages(error, kind):
    assert described(error("It broke.")) == {"type": kind, "message": "It broke."}
    assert described(error("x" * 1000)) == {"type": kind, "message": "x" * 499 + "…"}


# The request that it makes


def request(record, template="qa", chat=None, options=None, **settings):
    parsed = parse_template(template)
    used = PromptTemplate(parsed, "tiny", chat, **settings)
    return read(record, *parsed.variables).request(used, options or GenerationOptions())


def prompt(record, template="qa", chat=None, **settings):
    return request(record, template, chat, **settings).prompt


def said(**messages):
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages.items())
    return turns + "<|im_start|>assistant\n"


def test_a_request():
    assert request({"prompt": "Hi"}, "raw") == TextRequest("", "Hi")
    assert not request({"prompt": "Hi"}, "chat", CHAT).add_special_tokens
    assert not request({"messages": HI}, "raw", CHAT).add_special_tokens
    assert request({"prompt": "Hi"}, "raw", CHAT).add_special_tokens


@pytest.mark.parametrize("name", ["question", "prompt"])
def test_a_question_or_a_prompt_fits_every_built_in_template(name):
    record = {name: "Hi {there}"}
    assert prompt(record) == "Question: Hi {there}\n\nAnswer: Let's think step by step."
    assert prompt(record, "raw") == "Hi {there}"
    assert prompt(record, "chat", CHAT) == said(user="Hi {there}")


@pytest.mark.parametrize("template", ["qa", "raw", "chat", "Say {x} to {y}"])
def test_messages_go_past_every_template(template):
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    assert prompt({"messages": messages}, template, CHAT) == said(system="Be brief.", user="Hi")


@pytest.mark.parametrize(
    ("record", "system"),
    [
        ({"prompt": "Hi"}, "Be brief."),
        ({"messages": HI}, "Be brief."),
        ({"messages": [{"role": "system", "content": "Be long."}, *HI]}, "Be long."),
    ],
)
def test_the_system_message_of_the_run(record, system):
    assert prompt(record, "chat", CHAT, system="Be brief.") == said(system=system, user="Hi")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "Hi", "to": "German"}, "Hi in German"),
        ({"text": "Hi"}, "Hi in French"),
        ({"prompt": "Hi"}, "Hi in French"),
        ({"prompt": "Hi", "to": "German"}, "Hi in German"),
        ({"text": 1.5, "to": True, "unused": "x"}, "1.5 in true"),
        ({"text": "{to}", "to": "{text}"}, "{to} in {text}"),
    ],
)
def test_variables_of_a_template_of_ones_own(record, expected):
    assert prompt(record, "{text} in {to}", variables={"to": "French"}) == expected


@pytest.mark.parametrize(
    ("record", "template", "error", "message"),
    [
        ({"text": "Hi"}, "{text} in {to}", MissingVariable, r"(?m)No value for \{to\}.*given: text\.$"),
        ({"x": "Hi"}, "qa", MissingVariable, r"No value for \{question\} in qa; given: x\. A record needs prompt,"),
        ({"x": "Hi"}, "chat", MissingVariable, r"No value for \{prompt\} in chat; given: x\. A record needs prompt,"),
        ({"prompt": "Hi"}, "{text} in {to}", TemplateError, r"could be any of \{text\}, \{to\}"),
        ({"prompt": "Hi", "question": "Who?"}, "qa", TemplateError, "The prompt has no place in qa"),
        ({"messages": HI}, "qa", TemplateError, "Messages need a chat template"),
    ],
)
def test_a_record_that_does_not_fit_the_template(record, template, error, message):
    with pytest.raises(error, match=message):
        request(record, template, CHAT if template == "chat" else None)


def test_a_record_may_say_what_transformers_says():
    said = {"max_length": 9, "do_sample": False, "eos_token_id": [3, 4]}
    assert read({"prompt": "x", **said, "max_length": 9.0}).overrides == said
    assert request({"prompt": "x", **said}, "raw").options == GenerationOptions(**said)
    for name, value in (("do_sample", "no"), ("eos_token_id", "</s>"), ("max_length", 0)):
        assert error_of({"prompt": "x", name: value})[0] == "invalid_record"


def test_a_record_overrides_the_run():
    options = GenerationOptions(max_tokens=9, temperature=0.5, seed=1, stop=("\n",))
    assert request({"prompt": "Hi"}, "raw", options=options).options == options
    changed = {"prompt": "Hi", "max_new_tokens": 3, "temperature": 0, "stop": []}
    assert request(changed, "raw", options=options).options == GenerationOptions(max_tokens=3, temperature=0, seed=1)
    messages = {"messages": HI, "stop": "x", "seed": None}
    assert request(messages, "chat", CHAT, options=options).options == GenerationOptions(9, 0.5, seed=1, stop=("x",))
