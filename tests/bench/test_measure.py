"""What is timed, on an engine whose times are made."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import asdict
from types import SimpleNamespace

import psutil
import pytest

from hfpipe import models
from hfpipe.backends.base import Backend
from hfpipe.bench import measure, quality, rounds
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.measure import Timed, Watch, latency, run, throughput_tps
from hfpipe.bench.report import Configuration
from hfpipe.bench.rounds import Rounds
from hfpipe.bench.spec import Spec, Workload
from hfpipe.errors import BackendError, HFPipeError
from hfpipe.types import BackendInfo, LoadOptions, Silent, TokenEvent, TokenRequest
from tests import tiny


class Clockwork(Backend):
    """Reads a token of a prompt in 1 ms and gives a token in 10 ms, those of all requests at once."""

    name = "clockwork"
    info = BackendInfo("clockwork", "none", "none")

    def __init__(self, monkeypatch, answers=True):
        self.now = 100.0
        self.requests = []
        self.answers = answers
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    @classmethod
    def load(cls, source, options, reporter):
        raise NotImplementedError

    def cancel(self, request_id):
        raise NotImplementedError

    def stream(self, requests):
        requests = list(requests)
        self.requests += requests
        self.now += 0.001 * sum(len(one.token_ids) for one in requests)
        for number in range(max(one.max_tokens for one in requests)):
            self.now += 0.01
            for one in requests:
                if number < one.max_tokens:
                    done = number + 1 == one.max_tokens
                    yield TokenEvent(one.id, (7,) if self.answers else (), "length" if done else None)


@pytest.fixture
def engine(monkeypatch):
    return Clockwork(monkeypatch)


def request(number, tokens, new_tokens):
    return TokenRequest(str(number), (1,) * tokens, new_tokens)


def test_one_answer(engine):
    answers = run(engine, [request(0, 90, 5)])
    assert answers[0].itl_ms == pytest.approx([10] * 4)
    expected = {"ttft_ms": 100, "tpot_ms": 10, "prefill_tps": 900, "decode_tps": 100}
    expected |= {"itl_ms_p50": 10, "itl_ms_p95": 10, "itl_ms_p99": 10}
    assert latency(answers) == pytest.approx(expected)


def test_several_answers_at_once(engine):
    answers = run(engine, [request(0, 40, 4), request(1, 50, 6)])
    assert [len(one.tokens) for one in answers] == [4, 6]
    assert throughput_tps(answers) == pytest.approx(10 / 0.15)


def test_an_answer_of_one_token_has_no_time_between_tokens(engine):
    assert set(latency(run(engine, [request(0, 1, 1)]))) == {"ttft_ms", "prefill_tps"}


def test_an_engine_that_says_nothing(monkeypatch):
    with pytest.raises(BackendError, match="clockwork backend gave no token"):
        run(Clockwork(monkeypatch, answers=False), [request(0, 1, 2)])


def test_latencies_of_several_answers_are_their_medians():
    found = latency([Timed(1, 0.0, (first, first + 0.01, first + 0.03)) for first in (0.1, 0.2, 0.9)])
    assert found["ttft_ms"] == pytest.approx(200)
    assert found["tpot_ms"] == pytest.approx(15)
    assert found["itl_ms_p50"] == pytest.approx(15)
    assert found["itl_ms_p99"] == pytest.approx(20)


# What other processes took meanwhile


Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")


@pytest.fixture
def machine(monkeypatch):
    """Two processors whose clock and times are made."""
    made = SimpleNamespace(now=0.0, all=Times(*[0.0] * 10), own=(0.0,) * 4)
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "cpu_times", lambda: made.all)
    names = ("user", "system", "children_user", "children_system")
    process = SimpleNamespace(cpu_times=lambda: SimpleNamespace(**dict(zip(names, made.own, strict=True))))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    return made


def test_what_is_not_ours_is_others(machine):
    watch = Watch()
    machine.now = 10.0
    machine.own = (9.0, 1.0, 2.5, 0.5)
    machine.all = Times(14.0, 0, 1.0, 3.0, 1.0, 0, 0, 1.0, 5.0, 0)
    # 14 + 1 + 1 busy seconds, 13 of them ours, of 20 that there were.
    assert watch.stop()["others_cpu"] == pytest.approx(0.15)


@pytest.mark.parametrize(("own", "others"), [(9.0, 0.0), (0.0, 0.4)])
def test_a_share_is_never_below_zero(machine, own, others):
    watch = Watch()
    machine.now, machine.own, machine.all = 10.0, (own, 0.0, 0.0, 0.0), Times(8.0, *[0.0] * 9)
    assert watch.stop()["others_cpu"] == pytest.approx(others)


def test_a_frequency_that_cannot_be_read(monkeypatch):
    for answer in (lambda: None, lambda: SimpleNamespace(current=0.0)):
        monkeypatch.setattr(psutil, "cpu_freq", answer)
        assert Watch().stop()["frequency_mhz"] is None

    def refuse():
        raise NotImplementedError

    monkeypatch.setattr(psutil, "cpu_freq", refuse)
    assert Watch().stop()["frequency_mhz"] is None
    monkeypatch.setattr(psutil, "cpu_freq", lambda: SimpleNamespace(current=2600.5))
    assert Watch().stop()["frequency_mhz"] == 2600.5


def test_another_process_is_seen():
    """It keeps a processor busy for the half second, and longer."""
    code = "import time; print('up', flush=True); end = time.time() + 20\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as busy:
        busy.stdout.readline()
        watch = Watch()
        time.sleep(0.5)
        found = watch.stop()["others_cpu"]
        busy.kill()
    assert found > 0.4 / os.cpu_count()


# In processes, on real engines


LATENCY = {"ttft_ms", "tpot_ms", "itl_ms_p50", "itl_ms_p95", "itl_ms_p99"}
WORK = Workload(24, 6, (1, 3))


def candidate(folder, backend, **loading):
    row = Configuration("a row", "m", backend, None, (), ())
    return Candidate(row, models.resolve(str(folder)), LoadOptions(backend=backend, **loading), None)


def answers(candidate, workload, size, number=0, prompts=None):
    candidate.prompts = prompts
    return Rounds(Spec(("m",), workload), Silent())._answers(candidate, size, number)


def start(candidate, number=0):
    return Rounds(Spec(("m",), WORK), Silent())._start(candidate, number)


@pytest.fixture(params=["torch", "openvino"])
def on_engine(request, tiny_llama, tiny_llama_ov):
    return candidate(tiny_llama if request.param == "torch" else tiny_llama_ov, request.param)


@pytest.fixture
def here(monkeypatch):
    """Children's work is done in this process; gives the arguments."""
    given = []

    def run_child(module, arguments, **_):
        # As they go through a pipe.
        given.append(json.loads(json.dumps(arguments)))
        return json.loads(json.dumps(measure.main(given[-1], Silent())))

    monkeypatch.setattr(rounds, "run_child", run_child)
    return given


def test_one_answer_at_a_time(on_engine, here):
    sample = answers(on_engine, WORK, 1, 2, None)
    assert (sample.task, sample.round) == ("single", 2)
    assert set(sample.values) == {*LATENCY, "load_s", "pp24", "tg6", "peak_rss_mb"}
    assert all(value > 0 for value in sample.values.values())
    assert len(sample.itl_ms) == 5
    assert 0 <= sample.others_cpu <= 1
    assert here[0]["loading"]["batch_size"] == 1
    assert all((on_engine.row.device, on_engine.row.dtype, on_engine.row.detail))


def test_decoding_after_long_prompts(on_engine, here):
    """Of the lengths that are asked for; not where many are answered at once."""
    work = Workload(8, 6, (1, 2), (3, 40))
    sample = answers(on_engine, work, 1)
    assert sample.values["tg6@d3"] > 0 < sample.values["tg6@d40"]
    assert {name: len(one[0]) for name, one in here[0]["deep"].items()} == {"tg6@d3": 3, "tg6@d40": 40}
    assert {"tg6@d3", "tg6@d40"} <= {metric.name for metric in work.metrics}
    assert set(answers(on_engine, work, 2).values) == {"batch2_tps"}


def test_several_answers_at_once_on_an_engine(on_engine, here):
    sample = answers(on_engine, WORK, 3, 0, None)
    assert (sample.task, set(sample.values)) == ("batch3", {"batch3_tps"})
    assert here[0]["loading"]["batch_size"] == 3
    # That of one answer is what stands in the row.
    assert on_engine.row.device is None


def test_prompts_of_the_users_own(on_engine, here):
    prompts = [((1, 2, 3), 4), ((5,) * 30, 2)]
    sample = answers(on_engine, Workload(None, 6), 1, 0, prompts)
    assert set(sample.values) == {*LATENCY, "load_s", "prefill_tps", "decode_tps", "peak_rss_mb"}
    assert len(sample.itl_ms) == 3 + 1
    at_once = answers(on_engine, Workload(None, 6, (2,)), 2, 0, prompts)
    assert set(at_once.values) == {"batch2_tps"}


def test_rounds_have_their_own_prompts_and_candidates_the_same(on_engine, here):
    for number in (0, 1):
        answers(on_engine, WORK, 1, number, None)
    answers(on_engine, WORK, 1, 0, None)
    first, second, again = (one["prompts"] for one in here)
    assert first == again != second
    assert [len(token_ids) for token_ids, _ in first] == [24]
    # The warm-up has the shapes of what follows, and other tokens.
    assert [(len(token_ids), count) for token_ids, count in here[0]["warm_up"]] == [(24, 6), (1, 6)]
    assert here[0]["warm_up"][0] not in first


def test_an_answer_does_not_end_before_its_time(tiny_gpt2, tmp_path, here):
    """Every token is an end of sequence."""
    folder = shutil.copytree(tiny_gpt2, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(tiny.VOCABULARY))}))
    assert len(answers(candidate(folder, "torch"), WORK, 1, 0, None).itl_ms) == 5


def test_a_process_of_its_own(tiny_llama_ov):
    assert answers(candidate(tiny_llama_ov, "openvino"), Workload(8, 2), 1).values["load_s"] > 0


def test_a_start(tiny_llama, tmp_path, monkeypatch):
    """It is not what the environment says, and imports nothing from where the user is."""
    monkeypatch.setenv("HFPIPE_STOP", "nothing")
    monkeypatch.setenv("HFPIPE_TEMPERATURE", "no number")
    (tmp_path / "psutil.py").write_text("raise SystemExit('a stray module')")
    monkeypatch.chdir(tmp_path)
    sample = start(candidate(tiny_llama, "echo"), 1)
    assert (sample.task, sample.round, set(sample.values)) == ("start", 1, {"cold_ttft_s"})
    assert 0 < sample.values["cold_ttft_s"] < 60


def test_a_start_that_fails(tiny_llama):
    with pytest.raises(HFPipeError, match="'cuda:7'") as caught:
        start(candidate(tiny_llama, "torch", device="cuda:7"))
    assert caught.value.hint


def test_greedy_answers_are_those_of_any_engine(tiny_llama, tiny_llama_ov):
    found = []
    for folder, backend in ((tiny_llama, "torch"), (tiny_llama_ov, "openvino")):
        loading = asdict(LoadOptions(backend=backend, exact=True))
        given = {"reference": "x", "folder": str(folder), "loading": loading, "reference_folder": None}
        heard = quality.main({**given, "prompts": [[5, 6, 7], [8]], "new_tokens": 9}, Silent())
        assert heard["scores"] is None
        found.append(heard["answers"])
    assert found[0] == found[1]
    assert [len(one) for one in found[0]] == [9, 9]
