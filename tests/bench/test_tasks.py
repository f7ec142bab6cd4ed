"""Tasks of configurations: each against the first of its source, on real engines."""

import json
import shutil
from dataclasses import asdict, fields

import pytest

from hfpipe import models
from hfpipe.bench import tasks as module
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.report import Configuration, read_report
from hfpipe.bench.spec import Spec, Workload
from hfpipe.bench.tables import as_csv, tables
from hfpipe.bench.tasks import main, measure_tasks
from hfpipe.errors import BackendError, UnsupportedOption
from hfpipe.quality.tasks import Item, TaskScore, score
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import HostedModel, LoadOptions, Silent, TokenRequest
from tests import tiny
from tests.backends.running import answers, load
from tests.bench import made
from tests.endpoint.servers import MODEL, LoopbackServer
from tests.quality.likeliest import likeliest
from tests.test_docs import documented_fields

ITEMS = [Item(str(number), "x", "a", answers=("b",)) for number in range(4)]


def candidate(name, origin=None, source=None, **loading):
    row = Configuration(name, "m", loading.get("backend", "torch"), None, (), ())
    return Candidate(row, source or HostedModel("m", "http://x"), LoadOptions(**loading), origin)


def test_each_is_compared_with_the_first_of_its_source(tiny_llama, tiny_gpt2, monkeypatch):
    """What has an error or fails is left out; an unknown source is compared with the first of all."""
    llama, gpt2 = (models.resolve(str(folder)) for folder in (tiny_llama, tiny_gpt2))
    names = {"failed": llama, "broken": llama, "a": llama, "b": gpt2, "a int8": llama, "b int8": gpt2, "unknown": None}
    given, warned = [candidate(name, origin) for name, origin in names.items()], []
    given[0].row.error = "It broke."

    def answer(child, arguments, **_):
        if arguments["reference"] == "broken":
            raise BackendError("No logits.")
        right = len(arguments["reference"].split()) * 2
        return {item.id: "b" if number < right else "c" for number, item in enumerate(ITEMS)}

    monkeypatch.setattr(module, "run_child", answer)
    measure_tasks(given, ITEMS, Silent(), warned.append)
    assert warned == ["The tasks of broken could not be measured: No logits."]
    found = {one.row.name: one.row.tasks and (one.row.tasks.right, one.row.tasks.against) for one in given}
    assert found == {
        "failed": None,
        "broken": None,
        "a": (2, None),
        "b": (2, None),
        "a int8": (4, "a"),
        "b int8": (4, "b"),
        "unknown": (2, "a"),
    }


def ending(folder, target, ends):
    """The same model, whose answers end before any of these tokens."""
    shutil.copytree(folder, target)
    config = target / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": ends}))
    return target


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_model_gets_right_what_it_would_say_itself(tiny_llama, tiny_llama_ov, tmp_path, backend):
    """On either engine what it says on torch, in another case; and of choices what is likeliest by transformers."""
    tokenizer, (first, second) = load_tokenizer(tiny_llama), tiny.SENTENCES[:2]
    with load("torch", tiny_llama, device="cpu") as loaded:
        *own, end = answers(loaded, [TokenRequest("1", tokenizer.encode(first, True), 5)])["1"]
    said = tokenizer.decode(own)
    choices = (" the dog does not mind", " brown", " step by step")
    known = [
        Item("said", "text", first, answers=("no", f" {said.upper()}!")),
        Item("not said", "text", first, answers=("no",)),
        *(Item(one, "chosen", one, choices, likeliest(tiny_llama, one, choices)) for one in (first, second)),
    ]
    folder = ending(tiny_llama if backend == "torch" else tiny_llama_ov, tmp_path / "model", [end])
    one = candidate(backend, source=models.resolve(str(folder)), backend=backend, device="cpu", exact=True)
    warned = []
    measure_tasks([one], known, Silent(), warned.append)
    assert warned == []
    assert one.row.tasks.correct == {"said": True, "not said": False, first: True, second: True}
    assert one.row.tasks.kinds == {"text": (1, 2), "chosen": (2, 2)}
    assert one.row.tasks.given["said"] == said


def test_a_server_answers_texts_and_is_refused_for_choices():
    with LoopbackServer() as server:
        arguments = {
            "reference": "endpoint (network)",
            "folder": MODEL,
            "loading": {"backend": "endpoint", "endpoint": server.url, "batch_size": 1},
            "items": [asdict(ITEMS[0])],
        }
        said = main(arguments, Silent())
    assert list(said) == ["0"]
    assert said["0"]
    assert (server.asked[-1][0], server.bodies[-1]["temperature"]) == ("/v1/completions", 0)
    with pytest.raises(UnsupportedOption, match="endpoint cannot honour multiple choice in tasks"):
        Spec(("m",), Workload(4, 4), ("torch", "endpoint"), tasks=[Item("1", "x", "a", (" b", " c"))])


# In a report


def scored(right, against=None):
    given = {item.id: "b" if number < right else "c" for number, item in enumerate(ITEMS)}
    return score(ITEMS, given, against and (against[0], against[1].correct))


@pytest.fixture
def report():
    found = made.usual()
    first = scored(3)
    for row, right in zip(found.configurations, (3, 3, 2, 0), strict=True):
        row.tasks = first if row is found.configurations[0] else scored(right, ("torch", first))
    return found


def test_tables(report):
    found = {table.title: table for table in tables(report)}
    assert found["Speed"].columns["tasks"] == ["75%", "75%", "50%", "0%"]
    columns = found["Tasks"].columns
    assert columns["right"][:2] == ["3 of 4 (30% to 95%)"] * 2
    assert columns["difference"][0] == ""
    assert columns["difference"][2].startswith("1 fewer (-")
    assert columns["x"] == ["3 of 4", "3 of 4", "2 of 4", "0 of 4"]
    assert found["Tasks"].notes == ["difference: from torch, on the same items; with intervals of 95%."]


def test_csv_and_json(report, tmp_path):
    head, _, _, line, _ = as_csv(report).splitlines()
    cells = dict(zip(head.split(","), line.split(","), strict=True))
    assert (cells["tasks_right"], cells["tasks_items"], cells["tasks_against"]) == ("2", "4", "torch")
    assert cells["tasks_difference"] == "-1"
    (tmp_path / "r.json").write_text(json.dumps(asdict(report)))
    read = read_report(tmp_path / "r.json").configurations
    assert [asdict(row.tasks) for row in read] == [asdict(row.tasks) for row in report.configurations]


def test_the_fields_are_documented():
    assert documented_fields("tasks") == [field.name for field in fields(TaskScore)]
