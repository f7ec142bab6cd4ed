"""`hfpipe.bench` without its measuring."""

import doctest

import pytest

import hfpipe.bench
from hfpipe.bench import candidates, quality, rounds
from hfpipe.errors import UsageError
from hfpipe.export import Report
from hfpipe.export import report as reports
from hfpipe.quality.compare import Reference


class Work:
    """What the parts of a run were asked for."""

    def __init__(self, export):
        self.scored, self.compared, self.exported = [], [], []
        self._export = export

    def score(self, source, folder, *, texts, **_):
        self.scored.append(texts)
        return Reference(folder, (), 1, "float32")

    def export(self, source, options, reference, reporter, label):
        self.exported.append(reference().folder if reference else None)
        return Report(self._export, {})

    def compare(self, given, origin, reference, *_):
        self.compared.append(reference.folder)


@pytest.fixture
def work(monkeypatch, tiny_llama_ov, tmp_path):
    made = Work(tiny_llama_ov)
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(quality, "make_reference", made.score)
    monkeypatch.setattr(candidates.exporter, "export_to_cache", made.export)
    monkeypatch.setattr(rounds.Rounds, "measure", lambda *_: None)
    monkeypatch.setattr(quality, "_compare", made.compare)
    return made


def run(model, **more):
    return hfpipe.bench(str(model), prompt_tokens=8, new_tokens=4, batches=[1], **more)


def test_a_model_is_scored_once_for_its_exports_and_its_quality(tiny_llama, work, tmp_path):
    assert not run(tiny_llama).interrupted
    assert work.scored == [None]
    assert len(work.exported) == 3
    assert {*work.exported, *work.compared} == {work.compared[0]}
    assert list((tmp_path / "references").glob("*")) == []


def test_other_texts_are_for_the_quality_alone(tiny_llama, work, tmp_path):
    (tmp_path / "own.txt").write_text("a text")
    run(tiny_llama, text=tmp_path / "own.txt")
    assert work.scored == [None, {"own.txt": "a text"}]
    assert work.compared[0] not in work.exported


def test_without_quality_nothing_is_scored(tiny_llama, work):
    run(tiny_llama, quality=False)
    assert (work.scored, work.compared, work.exported) == ([], [], [None] * 3)


def test_a_record_that_does_not_fit_is_said_before_anything_is_exported(tiny_gpt2, work, tmp_path):
    (tmp_path / "p.jsonl").write_text('\n\n{"text": "x"}\n')
    report = hfpipe.bench(str(tiny_gpt2), prompts=tmp_path / "p.jsonl", new_tokens=4, batches=[1])
    assert work.exported == []
    names = [one.name for one in report.configurations]
    assert names == ["torch", "openvino fp32", "openvino int8", "openvino int4"]
    said = "No value for {question} in qa; given: text. A record needs prompt, question or messages."
    for one in report.configurations:
        assert one.error == f"Line 3 of the prompts: {said}"


def test_a_doubtful_reference_is_a_warning_of_the_report(tiny_llama, tiny_llama_ov, work, monkeypatch):
    monkeypatch.setattr(reports, "read", lambda folder: {"source": {"sha256": "0" * 64}})
    doubtful, short = run(tiny_llama_ov, reference=str(tiny_llama)).warnings
    assert "was made of another model" in doubtful
    assert "tokens, which says little" in short
    assert len(work.compared) == 1


def test_a_wrong_reference_is_said_before_anything_is_measured(tiny_gpt2, tiny_llama_ov, work):
    seen = []
    with pytest.raises(UsageError, match="was not made of"):
        run(tiny_llama_ov, reference=str(tiny_gpt2), after_round=seen.append)
    assert [report.configurations for report in seen] == [[]]


def test_prompts_are_random_or_of_the_users_own(tiny_gpt2):
    with pytest.raises(UsageError, match="cannot be combined with prompts"):
        run(tiny_gpt2, prompts="p.jsonl")


def test_the_example(tiny_llama):
    """Of the documentation; a real run."""
    found = doctest.DocTestFinder().find(hfpipe.bench.run, "run", globs={"folder": str(tiny_llama)})
    assert sum(doctest.DocTestRunner().run(one).attempted for one in found) == 3
    assert doctest.DocTestRunner().summarize(verbose=False).failed == 0
