"""Answers of a batch beside those that their prompts get alone and exactly."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.batch.formats import Format, OpenAIFormat
from hfpipe.batch.lines import Line
from hfpipe.batch.parity import Difference, Parity, answered, compare
from hfpipe.batch.records import Record
from hfpipe.errors import OutOfMemory
from hfpipe.types import Completion, GenerationOptions, TextRequest, Usage

FORM = Format(frozenset({"prompt"}))


def lines(count):
    return [Line(number, json.dumps({"prompt": str(number)}).encode(), b"") for number in range(count)]


def result(number, text, form=FORM, **asked):
    return form.result_line(Record(number, str(number), **asked), Completion("", text, "stop", Usage(1, 1)))


def failed(number, form=FORM):
    return form.result_line(Record(number, str(number)), Completion("", "", "error", error=OutOfMemory("No.")))


def compared(*pairs, **options):
    """Of pairs (what is in the output, what comes exactly)."""

    def stream_batch(requests):
        (request,) = requests
        text = pairs[int(request.prompt)][1]
        error = text if isinstance(text, Exception) else None
        yield 0, Completion("0", "" if error else text, "error" if error else "stop", error=error)

    source = SimpleNamespace(generation_config={})
    llm = SimpleNamespace(
        stream_batch=stream_batch, generator=SimpleNamespace(source=source), get_token_ids=lambda text: text.split()
    )
    given = [(Record(i, str(i)), found) for i, (found, _) in enumerate(pairs)]
    return compare(given, lambda record: TextRequest("", record.id, GenerationOptions(**options)), llm)


@pytest.mark.parametrize(
    ("pairs", "options", "expected"),
    [
        ([("a b", "a b"), ("", "")], {}, Parity(2, [], 0)),
        (
            [("the cat sat here", "the cat lay down"), ("a", "a")],
            {},
            Parity(1, [Difference("0", 2, 4, "sat here", "lay down")], 0),
        ),
        # One that ends sooner is another.
        ([("a b", "a")], {}, Parity(0, [Difference("0", 1, 1, " b", "")], 0)),
        ([("a", "a b")], {}, Parity(0, [Difference("0", 1, 2, "", " b")], 0)),
        # What cannot be answered exactly is not equal.
        ([("", OutOfMemory("no"))], {}, Parity(0, [Difference("0", 0, 0, "", None)], 0)),
        # What was drawn without a seed cannot be drawn again.
        ([("a", "b")], {"temperature": 1}, Parity(0, [], 1)),
        ([("a", "a")], {"temperature": 1, "seed": 3}, Parity(1, [], 0)),
    ],
)
def test_what_is_compared(pairs, options, expected):
    assert compared(*pairs, **options) == expected


@pytest.mark.parametrize("form", [FORM, OpenAIFormat(model="smollm2")], ids=["hfpipe", "openai"])
@pytest.mark.parametrize("asked", [{"prompt": "Hi"}, {"messages": ({"role": "user", "content": "Hi"},)}])
def test_answers_alone_are_compared_and_not_errors(form, asked):
    results = [result(0, "one", form, **asked), failed(1, form), result(2, "", form, **asked), b"torn"]
    assert [text for _, text in answered(lines(4), results, form, 10)] == ["one", ""]


@given(st.integers(0, 60), st.integers(1, 20))
def test_as_many_as_were_asked_for_in_their_order(there, count):
    results = [result(number, str(number)) for number in range(there)]
    found = answered(lines(there), results, FORM, count)
    texts = [text for _, text in found]
    assert len(found) == min(there, count)
    assert [record.prompt for record, _ in found] == texts == sorted(set(texts), key=int)
    assert found == answered(lines(there), results, FORM, count)


def test_all_parts_of_a_file_have_their_chance():
    seen, results = Counter(), [result(n, str(n)) for n in range(40)]
    for count in range(1, 21):
        seen.update(int(text) // 10 for _, text in answered(lines(40), results, FORM, count))
    assert all(30 <= seen[part] <= 80 for part in range(4))
