"""What a record asks, put into the template of the run or the model's own."""

import json

import pytest

from hfpipe.batch.lines import Line
from hfpipe.batch.prompts import Prompts
from hfpipe.batch.records import read_record
from hfpipe.errors import MissingVariable, TemplateError, UsageError
from hfpipe.text.chat import ChatTemplate
from hfpipe.text.templates import PromptTemplate, parse_template
from hfpipe.types import GenerationOptions, TextRequest
from tests import tiny

CHAT = ChatTemplate(tiny.CHAT_TEMPLATE, {}, "tiny")
ASSISTANT = "<|im_start|>assistant\n"


def request(record, template="qa", chat=None, **settings):
    parsed = parse_template(template)
    line = Line(1, json.dumps(record).encode(), b"")
    options = settings.pop("options", GenerationOptions())
    used = PromptTemplate(parsed, "tiny", chat, **settings)
    return Prompts(used, options).request("7", read_record(line, parsed.variables))


def prompt(record, template="qa", chat=None, **settings):
    return request(record, template, chat, **settings).prompt


def said(**messages):
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages.items()) + ASSISTANT


def test_a_request():
    assert request({"prompt": "Hi"}, "raw") == TextRequest("7", "Hi")


@pytest.mark.parametrize("name", ["question", "prompt"])
def test_a_question_or_a_prompt_fits_every_built_in_template(name):
    record = {name: "Hi {there}"}
    assert prompt(record) == "Question: Hi {there}\n\nAnswer: Let's think step by step."
    assert prompt(record, "raw") == "Hi {there}"
    assert prompt(record, "chat", CHAT) == said(user="Hi {there}")


def test_a_chat_template_holds_its_own_special_tokens():
    assert not request({"prompt": "Hi"}, "chat", CHAT).add_special_tokens
    assert not request({"messages": [{"role": "user", "content": "Hi"}]}, "raw", CHAT).add_special_tokens
    assert request({"prompt": "Hi"}, "raw", CHAT).add_special_tokens


@pytest.mark.parametrize("template", ["qa", "raw", "chat", "Say {x} to {y}"])
def test_messages_go_past_every_template(template):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert prompt({"messages": messages}, template, CHAT) == said(system="Be brief.", user="Hi")


def test_messages_without_a_chat_template():
    with pytest.raises(TemplateError, match="Messages need a chat template"):
        request({"messages": [{"role": "user", "content": "Hi"}]})


def test_the_template_chat_without_a_chat_template():
    with pytest.raises(TemplateError, match="no chat template"):
        PromptTemplate(parse_template("chat"), "tiny")
    with pytest.raises(UsageError, match="A system message needs a chat template"):
        PromptTemplate(parse_template("qa"), "tiny", system="Be brief.")


def test_the_system_message_of_the_run():
    settings = {"system": "Be brief."}
    user = {"role": "user", "content": "Hi"}
    assert prompt({"prompt": "Hi"}, "chat", CHAT, **settings) == said(system="Be brief.", user="Hi")
    assert prompt({"messages": [user]}, "chat", CHAT, **settings) == said(system="Be brief.", user="Hi")
    own = {"messages": [{"role": "system", "content": "Be long."}, user]}
    assert prompt(own, "chat", CHAT, **settings) == said(system="Be long.", user="Hi")


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


def test_a_variable_without_a_value():
    with pytest.raises(MissingVariable, match=r"No value for \{to\}.*given: text"):
        request({"text": "Hi"}, "{text} in {to}")
    with pytest.raises(MissingVariable, match=r"No value for \{question\} in qa; given: x"):
        request({"x": "Hi"})
    with pytest.raises(MissingVariable, match=r"No value for \{prompt\} in chat; given: x"):
        request({"x": "Hi"}, "chat", CHAT)


def test_a_prompt_that_could_be_either_of_two():
    with pytest.raises(TemplateError, match=r"could be any of \{text\}, \{to\}"):
        request({"prompt": "Hi"}, "{text} in {to}")


def test_a_record_overrides_the_run():
    options = GenerationOptions(max_tokens=9, temperature=0.5, seed=1, stop=("\n",))
    assert request({"prompt": "Hi"}, "raw", options=options).options == options
    changed = {"prompt": "Hi", "max_new_tokens": 3, "temperature": 0, "stop": []}
    assert request(changed, "raw", options=options).options == GenerationOptions(max_tokens=3, temperature=0, seed=1)
    messages = {"messages": [{"role": "user", "content": "Hi"}], "stop": "x", "seed": None}
    assert request(messages, "chat", CHAT, options=options).options == GenerationOptions(9, 0.5, seed=1, stop=("x",))


def test_what_the_template_names_is_no_override():
    asked = request({"seed": "42", "temperature": 0.5}, "Plant {seed}")
    assert (asked.prompt, asked.options) == ("Plant 42", GenerationOptions(temperature=0.5))


def test_a_prompt_without_a_place_is_not_dropped():
    with pytest.raises(TemplateError, match="no place for the prompt"):
        request({"prompt": "Hi", "question": "Who?"})
    with pytest.raises(TemplateError, match="no place for the prompt"):
        request({"prompt": "Hi"}, "raw", variables={"prompt": "Ho"})
