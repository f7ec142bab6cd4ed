"""Prompt templates, and chat templates compared with transformers' own rendering."""

import codecs
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.errors import TemplateError
from hfpipe.text import chat
from hfpipe.text.chat import ChatTemplate
from hfpipe.text.templates import PromptTemplate, parse_template

quick = settings(max_examples=60, deadline=None)

# --- prompt templates


def filled_in(template, given):
    # What chat does beside that has tests of its own.
    return PromptTemplate(replace(template, kind="custom"), "tiny").fill(given)


@pytest.mark.parametrize(
    ("text", "kind", "variables", "given", "filled"),
    [
        ("qa", "qa", ("question",), {"question": "Why?"}, "Question: Why?\n\nAnswer: Let's think step by step."),
        ("raw", "raw", ("prompt",), {"prompt": "as {it} is\n"}, "as {it} is\n"),
        ("chat", "chat", ("prompt",), {"prompt": "as {it} is\n"}, "as {it} is\n"),
        (
            "Say {what} to {who}, {who}: {{x}} }}{{",
            "custom",
            ("what", "who"),
            {"what": "{who}", "who": "Ann", "more": "unused"},
            "Say {who} to Ann, Ann: {x} }{",
        ),
    ],
)
def test_a_template_is_filled(text, kind, variables, given, filled):
    template = parse_template(text)
    assert (template.kind, template.variables, filled_in(template, given)) == (kind, variables, filled)


@given(before=st.text(), value=st.text(), after=st.text())
@quick
def test_filling_changes_nothing_but_the_variable(before, value, after):
    def escape(text):
        return text.replace("{", "{{").replace("}", "}}")

    # A text that begins with @ names a file.
    template = parse_template("." + escape(before) + "{x}" + escape(after))
    assert filled_in(template, {"x": value}) == "." + before + value + after


@pytest.mark.parametrize(
    "field",
    ["{}", "{0}", "{a.__class__}", "{a[0]}", "{a!r}", "{a:>10}", "{a:{b}}", "{a b}", '{"a": 1}', "{", "}", "{a"],
)
def test_only_plain_fields(field):
    with pytest.raises(TemplateError, match=r'the template "ask') as caught:
        parse_template("ask {x} " + field)
    assert "\n" not in caught.value.message
    assert "{{ and }}" in caught.value.hint


def test_a_missing_variable_is_named():
    template = parse_template("Translate {text} to {language}")
    with pytest.raises(TemplateError) as caught:
        filled_in(template, {"text": "x", "style": "y"})
    message = 'No value for {language} in the template "Translate {text} to {language}"; given: text, style.'
    assert caught.value.message == message
    with pytest.raises(TemplateError, match=r"No value for \{question\} in qa; given: nothing\."):
        filled_in(parse_template("qa"), {})
    with pytest.raises(TemplateError) as caught:
        filled_in(parse_template("{x}\n" + "long " * 100), {})
    assert len(caught.value.message) < 120
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "hint"), [("qaa", "'qa'"), ("Chat", "'chat'"), ("rwa", "'raw'"), ("my own", "@FILE"), ("", "@FILE")]
)
def test_a_text_without_variables_is_probably_a_mistyped_name(text, hint):
    with pytest.raises(TemplateError, match=r"There is no \{variable\} in the template") as caught:
        parse_template(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("content", "filled"),
    [("Grüße, {x}!\n\n".encode(), "Grüße, y!\n"), (codecs.BOM_UTF8 + b"Q: {x}\r\nA:\r\n", "Q: y\nA:")],
)
def test_file(tmp_path, content, filled):
    """Also from another system. The newline that ends it is not part of the template."""
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    template = parse_template(f"@{file}")
    assert (template.kind, template.name, filled_in(template, {"x": "y"})) == ("custom", f"@{file}", filled)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read the template"),
        (b"\xff\xfe {x}", "not UTF-8"),
        (b"no variables", "no {variable} in @"),
        (b"{}", "{}"),
    ],
)
def test_file_that_cannot_be_used(tmp_path, content, message):
    file = tmp_path if content is None else tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TemplateError) as caught:
        parse_template(f"@{file}")
    assert message in caught.value.message
    assert f"@{file}" in caught.value.message


@pytest.mark.parametrize(
    ("text", "given", "variable"),
    [
        ("qa", [], "question"),
        ("chat", [], "prompt"),
        ("raw", [], "prompt"),
        ("{style} {question}", [], "question"),
        ("{question} {prompt}", [], "prompt"),
        ("{question} {prompt}", ["prompt"], "question"),
        ("{text}", [], "text"),
        ("{text} {language}", ["language"], "text"),
        ("{text}", ["text"], None),
    ],
)
def test_the_variable_that_the_prompt_fills(text, given, variable):
    assert parse_template(text).prompt_variable(given) == variable
    with pytest.raises(TemplateError, match=r"any of \{text\}, \{language\}") as caught:
        parse_template("{text} {language} {style}").prompt_variable(["style"])
    assert "--var text=" in caught.value.hint


# --- chat templates, as their models publish them

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
EVERYTHING = r"""{%- set state = namespace(seen=0) %}
{%- if tools %}
    {{- "\n\n# Tools\n" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% if state.seen > 1 %}{% break %}{% endif %}
    {% generation %}
    {{ message.content | trim }} {{ loop.index }}
    {%- for call in message.tool_calls %}
        {{- '\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}{{- call.arguments | tojson }}{{- '}' }}
    {%- endfor %}
    {% set hidden = 1 %}
    {% endgeneration %}
    {% set state.seen = state.seen + 1 %}
{% endfor %}
{{ strftime_now('%Y') }} {{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}
{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=True, ensure_ascii=True, separators=(',', ':')) }}
{{ tools is none }} {{ documents is none }} [{{ nowhere }}] {{ flag | default('unset') }} {{ hidden is defined }}
"""
PUBLISHED = {"llama3": LLAMA3, "mistral": MISTRAL, "everything": EVERYTHING}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be <b>brief</b> & kind."}
CONVERSATIONS = {
    "single": [user("Hello")],
    "system": [SYSTEM, user("Hello")],
    "turns": [user("Hi"), assistant("Hello."), user(" And <you> & 'me' \"us\"? \n")],
    "unicode": [user("中文 👩‍👩‍👧‍👦 Grüße \u2028 \t")],
    "jinja": [user("{{ 7 * 7 }} {% raise %}")],
    "answered": [user("Hi"), assistant("Hello.")],
    "answered with spaces": [user("Hi"), assistant("  So ")],
    "answered with nothing": [user("Hi"), assistant("")],
    "wrong": [user("Hi"), user("Again"), assistant("So?")],
    "late": [user("Hi"), SYSTEM, user("Hello")],
}
REFUSED = {("mistral", name) for name in ("late", "system", "wrong")}


@pytest.fixture(scope="module")
def render_there():
    """transformers' own rendering: (source, messages, further variables) -> text."""
    import jinja2
    import tokenizers
    import transformers

    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"<s>": 0, "</s>": 1}, merges=[]))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **TOKENS)

    def render(source, messages, **extra):
        ending = "continue_final_message" if messages[-1]["role"] == "assistant" else "add_generation_prompt"
        options = {ending: True, **extra}
        try:
            return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
        except jinja2.TemplateError as error:
            return error

    return render


def render_here(source, messages, **extra):
    return ChatTemplate(source, TOKENS, "org/name").render(messages, **extra)


def test_a_message_that_is_left_out_cannot_be_continued_and_messages_stay_as_they_were():
    source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    messages = [user("Hi"), assistant("So")]
    with pytest.raises(TemplateError, match="does not show the last message"):
        render_here(source, messages)
    with pytest.raises(TemplateError):
        render_here("{% set messages[0].content = 'x' %}{{ messages[0].update(content='x') }}", messages)
    assert messages == [user("Hi"), assistant("So")]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", PUBLISHED)
def test_equals_transformers(render_there, family, conversation):
    """A last message of the assistant is continued; refusals are the same."""
    source, messages = PUBLISHED[family], CONVERSATIONS[conversation]
    there = render_there(source, messages)
    assert isinstance(there, str) == ((family, conversation) not in REFUSED)
    if isinstance(there, str):
        assert render_here(source, messages) == there
    else:
        with pytest.raises(TemplateError) as caught:
            render_here(source, messages)
        assert caught.value.message == f"The chat template of org/name: {there}"


@given(content=st.text(st.characters(codec="utf-8"), max_size=30), family=st.sampled_from(["llama3", "everything"]))
@quick
def test_any_content_equals_transformers(render_there, content, family):
    messages = [user(content), assistant(content), user("x")]
    assert render_here(PUBLISHED[family], messages) == render_there(PUBLISHED[family], messages)


def test_tools_and_further_variables_equal_transformers(render_there):
    tool = {"type": "function", "function": {"name": "get", "description": "Get <it> & über", "parameters": {}}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "get", "arguments": {"x": "<é>"}}]}
    messages, extra = [user("Hi"), call, user("So?")], {"tools": [tool], "flag": "on", "bos_token": "other"}
    for source in (EVERYTHING, LLAMA3):
        assert render_here(source, messages, **extra) == render_there(source, messages, **extra)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "line 1"),
        ("ok\n{{ x", "line 2"),
        ("{{ raise_exception('no\nsystem') }}", "org/name: no system"),
        ("{{ nowhere.x }}", "'nowhere' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include 'x' %}", "no loader"),
        ("{% for i in range(10**9) %}{% endfor %}", "a range of more than 100,000 numbers, the limit."),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ nowhere | tojson }}", "Undefined"),
        ("{{ [] | first }}{{ ([] | first).x }}", "No first item"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_a_template_does_wrong_is_its_error(source, message):
    template = ChatTemplate(source, {}, "org/name")  # nothing is compiled before it is needed
    with pytest.raises(TemplateError, match=r"^The chat template of org/name: ") as caught:
        template.render([user("Hi")])
    assert message in caught.value.message
    assert "\n" not in caught.value.message


GROW = "{% set ns = namespace(x='ab', l=[1]) %}{% for i in range(60) %}{% set "


@pytest.mark.parametrize(
    ("source", "limit"),
    [
        ("{% for i in range(9999) %}" * 3 + "{% endfor %}" * 3, "seconds"),
        ("{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}", "seconds"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "seconds"),
        ("{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "seconds"),
        ("{{ 'x' * 10**10 }}", "characters"),
        ("{{ ([1] * 10**10) | length }}", "characters"),
        ("{{ 'x'.ljust(10**10) }}", "characters"),
        ("{% set f = 'x'.zfill %}{{ f(10**10) }}", "characters"),
        ("{{ ('a' * 10**6).replace('a', 'a' * 10**6) }}", "characters"),
        ("{{ ('a' * 10**6).join(range(9999) | map('string')) }}", "characters"),
        ("{{ range(9999) | map('string') | join('a' * 10**6) }}", "characters"),
        ("{{ ('a' * 10**6) | replace('a', 'a' * 10**6) }}", "characters"),
        (GROW + "ns.x = ns.x ~ ns.x %}{% endfor %}", "characters"),
        (GROW + "ns.x = ns.x + ns.x %}{% endfor %}", "characters"),
        (GROW + "ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}", "characters"),
        (GROW + "ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x == ns.x }}", "characters"),
        ("{{ ('a ' * 10**6) | wordwrap(1, true, 'x' * 10**5) }}", "characters"),
        ("{{ [1] | slice(10**9) | list | length }}", "characters"),
        ("{% set x = 'a' * 10**7 %}{% for i in range(9999) %}{{ x | upper }}{% endfor %}", "characters"),
        ("{{ range(99999) | map('center', 9999) | list | length }}", "characters"),
        ("{{ 'x' | center(10**10) }}", "characters"),
        ("{{ 1 | round(10**9, 'ceil') }}", "characters"),
        ("{{ 'x'.translate({120: 'x' * 10**6}) * 100 }}", "characters"),
        ("{{ ([messages] * 10**7) | tojson }}", "characters"),
        ("{{ ('{0}' * 10**5).format('x' * 10**5) }}", "characters"),
        ("{{ '%10000000000d' % 1 }}", "width"),
        ("{{ '%*d' | format(10**10, 1) }}", "width"),
        ("{{ '{:{}}'.format('x', 10**10) }}", "width"),
        ("{{ 9 ** (9 ** 9) }}", "characters"),
    ],
)
def test_a_template_without_end_or_measure_is_refused(monkeypatch, source, limit):
    monkeypatch.setattr(chat, "SECONDS", 0.2 if limit == "seconds" else 60)
    with pytest.raises(TemplateError, match=rf"^The chat template of org/name: .*{limit}.*limit\.\n") as caught:
        ChatTemplate(source, {}, "org/name").render([user("Hi")])
    assert caught.value.hint


def test_a_long_conversation_is_within_the_limits():
    source = (
        "{% set ns = namespace(s='') %}{% for m in messages if m.content %}"
        "{% set ns.s = ns.s ~ m.role + ': ' + (m.content | trim) %}{% endfor %}{{ ns.s }}"
    )
    long = [user("word " * 400)] * 400 + [user("word " * 2_000_000)]
    text = ChatTemplate(source, {}, "org/name").render(long)
    assert text == "".join(f"user: {message['content'].strip()}" for message in long)
