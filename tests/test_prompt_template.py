"""Which template puts a prompt to a model: chosen in one place, for the command line, LangChain, batch and bench."""

import pytest

from hfpipe.errors import TemplateError, UsageError
from hfpipe.text.templates import prompt_template
from hfpipe.text.tokenizer import Tokenizer
from tests import tiny

CHAT = tiny.CHAT_TEMPLATE
THINKING = CHAT + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{{ more }}"
USER = {"role": "user", "content": "Hi"}


def choose(templates=None, *arguments, **options):
    return prompt_template(Tokenizer(None, {"bos_token": "<s>"}, templates or {}), "org/name", *arguments, **options)


def test_the_default_is_the_chat_template_of_the_model_else_qa():
    qa, own = choose(), choose({"default": CHAT})
    assert (qa.template.name, qa.template.kind, qa.add_special_tokens) == ("qa", "qa", True)
    assert qa.fill({"question": "Why?"}) == qa.text.replace("{question}", "Why?")
    assert (own.template.name, own.template.kind, own.text, own.add_special_tokens) == ("chat", "chat", CHAT, False)
    assert own.fill({"prompt": "Hi"}) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert choose({"default": CHAT}, "raw").fill({"prompt": "Hi"}) == "Hi"


def test_messages_pass_every_template_by():
    assert choose({"default": CHAT}, "raw").render([USER]) == choose({"default": CHAT}).fill({"prompt": "Hi"})
    with pytest.raises(TemplateError, match=r"Messages need a chat template, and org/name has none"):
        choose().render([USER])


def test_a_system_message_comes_first_and_the_conversation_may_have_its_own():
    own = choose({"default": CHAT}, None, "Be brief.")
    assert own.fill({"prompt": "Hi"}).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    assert "brief" not in own.render([{"role": "system", "content": "Be long."}, USER])


@pytest.mark.parametrize(("templates", "template"), [({"default": CHAT}, "raw"), ({}, None), ({}, "{x} {y}")])
def test_a_system_message_without_a_place_is_refused(templates, template):
    with pytest.raises(UsageError, match="A system message needs a chat template, and "):
        choose(templates, template, "Be brief.")


def test_the_last_message_of_the_assistant_is_continued():
    messages = [USER, {"role": "assistant", "content": "Well, "}]
    assert choose({"default": CHAT}).render(messages).endswith("<|im_start|>assistant\nWell, ")


NAMED = {"tool_use": "T", "rag": "R"}


def test_of_several_templates_the_default_or_the_only_or_the_named_one_is_used():
    assert choose({"default": "D", **NAMED}).text == "D"
    assert choose({"rag": "R"}).text == "R"
    assert choose(NAMED, chat_template_name="rag").text == "R"
    assert choose(NAMED, "{x}").text == "{x}"


def test_several_templates_and_none_is_the_default():
    for template in (None, "chat"):
        with pytest.raises(TemplateError, match=r"org/name has several chat templates: tool_use, rag\.") as caught:
            choose(NAMED, template)
        assert "--chat-template-name" in caught.value.hint
    with pytest.raises(TemplateError, match=r"has no chat template 'rga'") as caught:
        choose(NAMED, chat_template_name="rga")
    assert "rag" in caught.value.hint


def test_variables_reach_the_chat_template_as_json_where_they_are_json():
    def filled(**variables):
        return choose({"default": THINKING}, variables=variables).fill({"prompt": "Hi"})

    assert filled() == choose({"default": CHAT}).fill({"prompt": "Hi"})
    assert filled(enable_thinking="false").endswith("<think></think>")
    assert filled(enable_thinking=False, more="[1").endswith("<think></think>[1")
    assert filled(enable_thinking="true", more='{"a": 1}').endswith("{'a': 1}")


def test_a_variable_that_the_chat_template_lacks_is_an_error():
    with pytest.raises(
        TemplateError, match=r"The chat template of org/name has no variable 'enable_thinkin'"
    ) as caught:
        choose({"default": THINKING}, variables={"enable_thinkin": "false"})
    assert "enable_thinking" in caught.value.hint
    with pytest.raises(TemplateError, match="no variable 'messages'"):
        choose({"default": THINKING}, variables={"messages": "[]"})
