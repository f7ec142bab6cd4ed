"""Answers of a batch beside those that their prompts get alone and exactly."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.batch.formats import HFPipeFormat
from hfpipe.batch.lines import Line
from hfpipe.batch.openai_format import OpenAIFormat
from hfpipe.batch.parity import Answered, Difference, Parity, answered, compare
from hfpipe.batch.prompts import Prompts
from hfpipe.batch.records import Record, RecordError, read_record
from hfpipe.errors import OutOfMemory
from hfpipe.text.templates import PromptTemplate, parse_template
from hfpipe.types import Completion, GenerationOptions, Usage

FORM = HFPipeFormat(frozenset({"prompt"}))


def line(number, prompt="Hi", **more):
    return Line(number, json.dumps({"prompt": prompt, **more}).encode(), b"")


def result(number, text):
    return FORM.result_line(Record(number, str(number)), Completion(str(number), text, "stop", Usage(1, 1)))


def failed(number):
    return FORM.result_line(Record(number, str(number)), RecordError("engine", "It broke."))


def compared(*pairs, drawn=False, **record):
    """Of pairs (what stands, what comes exactly)."""
    given = [Answered(read_record(line(i, str(i), **record), {"prompt"}), one) for i, (one, _) in enumerate(pairs)]

    def answer(request):
        text = pairs[int(request.prompt)][1]
        if isinstance(text, Exception):
            return Completion(request.id, "", "error", error=text)
        return Completion(request.id, text, "stop")

    prompts = Prompts(PromptTemplate(parse_template("raw"), "tiny"))
    return compare(given, prompts, answer, lambda options: drawn, lambda text: text.split())


def test_equal_answers():
    assert compared(("a b", "a b"), ("", "")) == Parity(2, [], 0)


def test_where_an_answer_parts():
    found = compared(("the cat sat here", "the cat lay down"), ("a", "a"))
    assert found == Parity(1, [Difference("0", 2, 4, "sat here", "lay down")], 0)


@pytest.mark.parametrize(("stands", "exact"), [("a b", "a"), ("a", "a b")])
def test_an_answer_that_ends_sooner_is_another(stands, exact):
    assert compared((stands, exact)).different[0].after == 1


def test_what_cannot_be_answered_exactly_is_not_equal():
    assert compared(("", OutOfMemory("no"))).different == [Difference("0", 0, 0, "", None)]


def test_what_was_drawn_without_a_seed_cannot_be_drawn_again():
    assert compared(("a", "b"), drawn=True) == Parity(0, [], 1)
    assert compared(("a", "a"), drawn=True, seed=3) == Parity(1, [], 0)


def test_answers_alone_are_compared_and_not_errors():
    lines = [line(number) for number in range(1, 5)]
    results = [result(1, "one"), failed(2), result(3, "three")]
    assert [one.text for one in answered(lines, results, FORM, 10)] == ["one", "three"]


@given(st.integers(0, 60), st.integers(1, 20))
def test_as_many_as_were_asked_for_in_their_order(there, count):
    lines = [line(number, str(number)) for number in range(there)]
    results = [result(number, str(number)) for number in range(there)]
    found = [int(one.text) for one in answered(lines, results, FORM, count)]
    assert len(found) == min(there, count)
    assert found == sorted(set(found))
    assert found == [int(one.text) for one in answered(lines, results, FORM, count)]


def test_all_parts_of_a_file_have_their_chance():
    seen = Counter()
    lines, results = [line(n, str(n)) for n in range(40)], [result(n, str(n)) for n in range(40)]
    for count in range(1, 21):
        seen.update(int(one.text) // 10 for one in answered(lines, results, FORM, count))
    assert all(30 <= seen[part] <= 80 for part in range(4))


@pytest.mark.parametrize(
    "record", [Record(1, "a", prompt="Hi"), Record(1, "a", messages=({"role": "user", "content": "Hi"},))]
)
@given(text=st.text())
def test_the_text_of_a_line_of_either_format(record, text):
    # What stands in a file has been through UTF-8.
    text = text.encode("utf-8", "replace").decode()
    completion = Completion("a", text, "stop", Usage(1, 2))
    for form in (FORM, OpenAIFormat("m")):
        assert form.read_text(form.result_line(record, completion)) == text
        assert form.read_text(form.result_line(record, RecordError("engine", "It broke."))) is None
        assert form.read_text(b"torn") is None


def test_options_of_a_record_are_those_of_its_answer():
    asked = []

    def answer(request):
        asked.append(request.options)
        return Completion(request.id, "a", "stop")

    record = read_record(line(1, max_tokens=3), {"prompt"})
    prompts = Prompts(PromptTemplate(parse_template("raw"), "tiny"), GenerationOptions(seed=1))
    compare([Answered(record, "a")], prompts, answer, lambda options: False, str.split)
    assert asked == [GenerationOptions(max_tokens=3, seed=1)]
