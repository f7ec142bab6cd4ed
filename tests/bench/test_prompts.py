"""The user's own prompts, as the models are given them."""

import json

import pytest

from hfpipe import models
from hfpipe.bench.prompts import read_records, tokenized
from hfpipe.errors import ContextLengthError, MissingVariable, TemplateError, UsageError
from hfpipe.text.tokenizer import load_tokenizer


def records(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return read_records(path)


def test_they_are_put_to_the_model_as_batch_does_it(tiny_gpt2, tiny_llama, tmp_path):
    given = records(tmp_path, {"question": "What is EEG?"}, {"prompt": "What is EEG?", "max_tokens": 3})
    first, second = tokenized(given, models.resolve(str(tiny_gpt2)), 5)
    assert (first.new_tokens, second.new_tokens) == (5, 3)
    asked = "Question: What is EEG?\n\nAnswer: Let's think step by step."
    assert first.token_ids == second.token_ids == load_tokenizer(tiny_gpt2).encode(asked, True)
    as_chat, _ = tokenized(given, models.resolve(str(tiny_llama)), 5)
    assert as_chat.token_ids != first.token_ids


@pytest.mark.parametrize(
    ("line", "kind", "said", "hint"),
    [
        ({"text": "x"}, MissingVariable, "No value for {question}", 'A line has a "prompt", a "question"'),
        ({"prompt": "x", "max_tokens": 128}, ContextLengthError, "tokens, and its context is 128.", "--new-tokens"),
        ({"messages": [{"role": "user", "content": "x"}]}, TemplateError, "Messages need a chat template", ""),
    ],
)
def test_one_that_does_not_fit_the_model_is_said_with_its_line(tiny_gpt2, tmp_path, line, kind, said, hint):
    given = records(tmp_path, {"prompt": "a"}, "", line)
    with pytest.raises(kind) as caught:
        tokenized(given, models.resolve(str(tiny_gpt2)), 5)
    assert caught.value.message.startswith("Line 3 of the prompts: ")
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "--var" not in (caught.value.hint or "")


def test_a_line_that_is_none_and_a_file_without_any(tmp_path):
    with pytest.raises(UsageError, match=r"Line 2 of .* is no prompt: "):
        records(tmp_path, {"prompt": "a"}, "{")
    with pytest.raises(UsageError, match="has no prompts"):
        records(tmp_path)
