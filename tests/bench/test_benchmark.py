"""A whole benchmark without its measuring."""

import pytest

from hfpipe.batch.records import Record
from hfpipe.bench import benchmark, exports, origins, references
from hfpipe.bench.benchmark import Benchmark
from hfpipe.bench.choices import Choices
from hfpipe.bench.metrics import Workload
from hfpipe.errors import UsageError
from hfpipe.export import Report
from hfpipe.quality import Reference
from hfpipe.types import Silent


class Work:
    """What the parts of a run were asked for."""

    def __init__(self, export):
        self.scored, self.compared, self.exported = [], [], []
        self._export = export

    def score(self, source, folder, *, texts, **_):
        self.scored.append(texts)
        return Reference(folder, (), 1, "float32")

    def export(self, plan, *, verify, reference, **_):
        assert verify == (reference is not None)
        self.exported.append(reference().folder if verify else None)
        return Report(self._export, {})

    def compare(self, judge, given, origin, reference):
        self.compared.append(reference.folder)


@pytest.fixture
def work(monkeypatch, tiny_llama_ov, tmp_path):
    made = Work(tiny_llama_ov)
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(references, "make_reference", made.score)
    monkeypatch.setattr(exports.exporter, "export", made.export)
    monkeypatch.setattr(benchmark.Rounds, "measure", lambda *_: None)
    monkeypatch.setattr(benchmark.Judge, "_compare", lambda *asked: made.compare(*asked))
    return made


def run(model, **more):
    benchmark = Benchmark(Choices([str(model)]), Workload(8, 4, (1,)), **more)
    benchmark.run(Silent())
    return benchmark.report


def test_a_model_is_scored_once_for_its_exports_and_its_quality(tiny_llama, work, tmp_path):
    assert not run(tiny_llama).interrupted
    assert work.scored == [None]
    assert len(work.exported) == 3
    assert {*work.exported, *work.compared} == {work.compared[0]}
    assert list((tmp_path / "references").iterdir()) == []


def test_other_texts_are_for_the_quality_alone(tiny_llama, work):
    run(tiny_llama, texts={"prose": "a text"})
    assert work.scored == [None, {"prose": "a text"}]
    assert work.compared[0] not in work.exported


def test_without_quality_nothing_is_scored(tiny_llama, work):
    run(tiny_llama, quality=False)
    assert (work.scored, work.compared, work.exported) == ([], [], [None] * 3)


def test_a_record_that_does_not_fit_is_said_before_anything_is_exported(tiny_gpt2, work):
    report = run(tiny_gpt2, records=[Record(7, "a", {"text": "x"})])
    assert work.exported == []
    names = [one.name for one in report.configurations]
    assert names == ["torch", "openvino fp32", "openvino int8", "openvino int4"]
    for one in report.configurations:
        assert one.error.startswith("Line 7 of the prompts: No value for {question} in qa; given: text.")
        assert one.error.endswith('A line has a "prompt", a "question", or "messages".')


def test_a_doubtful_reference_is_a_warning_of_the_report(tiny_llama, tiny_llama_ov, work, monkeypatch):
    monkeypatch.setattr(origins.reports, "read", lambda folder: {"source": {"sha256": "0" * 64}})
    asked = Benchmark(Choices([str(tiny_llama_ov)], reference=str(tiny_llama)), Workload(8, 4, (1,)))
    asked.run(Silent())
    doubtful, short = asked.report.warnings
    assert "was made of another model" in doubtful
    assert "tokens, which says little" in short
    assert len(work.compared) == 1


def test_a_wrong_reference_is_said_before_anything_is_measured(tiny_gpt2, tiny_llama_ov, work):
    asked = Benchmark(Choices([str(tiny_llama_ov)], reference=str(tiny_gpt2)), Workload(8, 4, (1,)))
    with pytest.raises(UsageError, match="was not made of"):
        asked.run(Silent())
    assert asked.report.configurations == []
