"""One configuration, measured once, on real engines."""

import json
import shutil
from dataclasses import asdict

import pytest

from hfpipe import models
from hfpipe.bench import judge, tasks, worker
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.measure import Prompt
from hfpipe.bench.metrics import Workload
from hfpipe.bench.report import Configuration
from hfpipe.bench.tasks import Answers, Start
from hfpipe.errors import BackendError
from hfpipe.types import LoadOptions, Silent
from tests import tiny

LATENCY = {"ttft_ms", "tpot_ms", "itl_ms_p50", "itl_ms_p95", "itl_ms_p99"}
WORK = Workload(24, 6, (1, 3))


def candidate(folder, backend, **loading):
    row = Configuration("a row", "m", backend, None, (), ())
    return Candidate(row, models.resolve(str(folder)), LoadOptions(backend=backend, **loading), None)


@pytest.fixture(params=["torch", "openvino"])
def engine(request, tiny_llama, tiny_llama_ov):
    return candidate(tiny_llama if request.param == "torch" else tiny_llama_ov, request.param)


@pytest.fixture
def here(monkeypatch):
    """Children's work is done in this process; gives the arguments."""
    given = []

    def run_child(module, arguments, **_):
        # As they go through a pipe.
        given.append(json.loads(json.dumps(arguments)))
        return json.loads(json.dumps(worker.main(given[-1], Silent())))

    monkeypatch.setattr(tasks, "run_child", run_child)
    return given


def test_one_answer_at_a_time(engine, here):
    sample = Answers(WORK, 1, None).measure(engine, 2)
    assert (sample.task, sample.round) == ("single", 2)
    assert set(sample.values) == {*LATENCY, "load_s", "pp24", "tg6", "peak_rss_mb"}
    assert all(value > 0 for value in sample.values.values())
    assert len(sample.itl_ms) == 5
    assert 0 <= sample.others_cpu <= 1
    assert here[0]["loading"]["batch_size"] == 1
    assert all((engine.row.device, engine.row.dtype, engine.row.detail))


def test_several_answers_at_once(engine, here):
    sample = Answers(WORK, 3, None).measure(engine, 0)
    assert (sample.task, set(sample.values)) == ("batch3", {"batch3_tps"})
    assert here[0]["loading"]["batch_size"] == 3
    # That of one answer is what stands in the row.
    assert engine.row.device is None


def test_prompts_of_the_users_own(engine, here):
    prompts = [Prompt((1, 2, 3), 4), Prompt((5,) * 30, 2)]
    sample = Answers(Workload(None, 6), 1, prompts).measure(engine, 0)
    assert set(sample.values) == {*LATENCY, "load_s", "prefill_tps", "decode_tps", "peak_rss_mb"}
    assert len(sample.itl_ms) == 3 + 1
    at_once = Answers(Workload(None, 6, (2,)), 2, prompts).measure(engine, 0)
    assert set(at_once.values) == {"batch2_tps"}


def test_rounds_have_their_own_prompts_and_candidates_the_same(engine, here):
    for number in (0, 1):
        Answers(WORK, 1, None).measure(engine, number)
    assert [one["seed"] for one in here] == ["round 0", "round 1"]


def test_an_answer_does_not_end_before_its_time(tiny_gpt2, tmp_path, here):
    """Every token is an end of sequence."""
    folder = shutil.copytree(tiny_gpt2, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(tiny.VOCABULARY))}))
    assert len(Answers(WORK, 1, None).measure(candidate(folder, "torch"), 0).itl_ms) == 5


def test_a_process_of_its_own(engine):
    assert Answers(Workload(8, 2), 1, None).measure(engine, 0).values["load_s"] > 0


def test_a_start(tiny_llama):
    sample = Start().measure(candidate(tiny_llama, "echo"), 1)
    assert (sample.task, sample.round, set(sample.values)) == ("start", 1, {"cold_ttft_s"})
    assert 0 < sample.values["cold_ttft_s"] < 60


def test_a_start_is_not_what_the_environment_says(tiny_llama, monkeypatch):
    monkeypatch.setenv("HFPIPE_STOP", "nothing")
    monkeypatch.setenv("HFPIPE_TEMPERATURE", "no number")
    assert Start().measure(candidate(tiny_llama, "echo"), 0).values


def test_a_start_imports_nothing_from_where_the_user_is(tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "psutil.py").write_text("raise SystemExit('a stray module')")
    monkeypatch.chdir(tmp_path)
    assert Start().measure(candidate(tiny_llama, "echo"), 0).values


def test_a_start_that_says_nothing(tiny_llama, monkeypatch):
    monkeypatch.setattr(tasks, "QUESTION", "--help")
    with pytest.raises(BackendError, match="hfpipe run failed: exit status 0"):
        Start().measure(candidate(tiny_llama, "echo"), 0)


def test_a_start_that_fails(tiny_llama):
    with pytest.raises(BackendError, match="hfpipe run failed: There is no device 'cuda:7'") as caught:
        Start().measure(candidate(tiny_llama, "torch", device="cuda:7"), 0)
    assert caught.value.hint == "Leave --device out to run on the CPU."


def test_greedy_answers_are_those_of_any_engine(tiny_llama, tiny_llama_ov):
    found = []
    for folder, backend in ((tiny_llama, "torch"), (tiny_llama_ov, "openvino")):
        loading = asdict(LoadOptions(backend=backend, exact=True))
        given = {"reference": "x", "folder": str(folder), "loading": loading, "reference_folder": None}
        heard = judge.main({**given, "prompts": [[5, 6, 7], [8]], "new_tokens": 9}, Silent())
        assert heard["scores"] is None
        found.append(heard["answers"])
    assert found[0] == found[1]
    assert [len(one) for one in found[0]] == [9, 9]
