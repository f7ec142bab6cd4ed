"""`hfpipe bench` on a model that a server runs: texts over a network, and a row that says so."""

import json

import pytest

from hfpipe.bench import candidates as module
from hfpipe.bench import hosted
from hfpipe.bench.candidates import candidates
from hfpipe.bench.report import Report
from hfpipe.bench.spec import Spec, Workload, read_prompts
from hfpipe.errors import BackendError, UnsupportedOption
from hfpipe.types import HostedModel, LoadOptions, Silent
from tests.cli.shell import run_hfpipe
from tests.endpoint.servers import MODEL, LoopbackServer, status


@pytest.fixture
def server():
    with LoopbackServer() as made:
        yield made


def arguments(server, batch=1):
    shapes = [(4, 8)] * batch
    return {
        "folder": MODEL,
        "loading": {"backend": "endpoint", "endpoint": server.url, "batch_size": batch},
        "batch": batch,
        "warm_up": hosted.drawn("warm-up", shapes),
        "prompts": hosted.drawn("round 1", shapes),
        "short": [] if batch > 1 else [("raw text", 8)],
    }


def test_one_answer_at_a_time(server):
    found = hosted.main(arguments(server), Silent())
    values = found["sample"]["values"]
    assert set(values) == {"ttft_ms", "prefill_tps", "tpot_ms", "decode_tps"}
    assert all(value > 0 for value in values.values())
    assert found["engine"]["device"] == "127.0.0.1"
    assert {one["temperature"] for one in server.bodies} == {0}
    assert server.asked[-1][0] == "/v1/completions"


def test_several_at_once(server):
    server.together = 3
    found = hosted.main(arguments(server, batch=3), Silent())
    assert found["sample"]["values"]["batch_tps"] > 0
    assert server.most == 3


def test_tokens_are_what_the_server_counts(server):
    server.counts = False
    with pytest.raises(BackendError, match="The server does not count tokens"):
        hosted.main(arguments(server), Silent())
    server.faults.append(status(400))
    with pytest.raises(BackendError, match="answered 400"):
        hosted.main(arguments(server), Silent())


def test_prompts_are_random_words_and_the_same_again():
    ((messages, new_tokens),) = hosted.drawn("x", [(16, 5)])
    assert (len(messages[0]["content"].split()), new_tokens) == (16, 5)
    assert hosted.drawn("x", [(16, 5)]) == [(messages, new_tokens)] != hosted.drawn("y", [(16, 5)])


def rows(*backends, models=(MODEL,), prompts=None, **loading):
    report = Report({}, {}, "", [])
    spec = Spec(models, Workload(4, 4), backends, loading=LoadOptions(**loading), prompts=prompts)
    return candidates(spec, report, None, Silent()), report


def test_a_row_says_that_it_measures_a_network(server, monkeypatch):
    """No model is looked for on this machine."""
    monkeypatch.setattr(module.models, "resolve", None)
    (one,), report = rows("endpoint", endpoint=server.url + "?key=s3cret")
    assert one.row.name == "endpoint (network)"
    assert one.row.command == [
        "hfpipe",
        "run",
        MODEL,
        "--backend",
        "endpoint",
        "--endpoint",
        server.url,
        module.QUESTION,
    ]
    assert one.source == HostedModel(MODEL, server.url)
    assert one.loading.endpoint.endswith("?key=s3cret")
    (warning,) = report.warnings
    assert warning.startswith(f"{one.row.name} measures the network and what is behind {server.url}")
    pair, _ = rows("endpoint", models=("a/x", "b/y"), endpoint=server.url)
    assert [one.row.name for one in pair] == ["x endpoint (network)", "y endpoint (network)"]


def test_it_is_compared_with_an_engine_of_this_machine(server, tiny_llama):
    """Each gets the options that it knows."""
    (local, remote), _ = rows("endpoint", "torch", models=(str(tiny_llama),), endpoint=server.url, dtype="float32")
    assert (local.loading.backend, local.loading.endpoint, local.loading.dtype) == ("torch", None, "float32")
    assert (remote.loading.backend, remote.loading.dtype) == ("endpoint", None)


@pytest.mark.parametrize("engines", [("endpoint", "torch"), ("torch", "endpoint")])
def test_options_that_one_of_them_honours_are_taken_in_any_order(server, tiny_llama, engines):
    def found(**options):
        made, _ = rows(*engines, models=(str(tiny_llama),), endpoint=server.url, **options)
        return {one.loading.backend: one.loading for one in made}

    loading = found(exact=True, allow_pickle=True, dtype="float32")
    assert (loading["torch"].exact, loading["torch"].allow_pickle, loading["torch"].dtype) == (True, True, "float32")
    assert (loading["endpoint"].exact, loading["endpoint"].allow_pickle) == (False, False)
    with pytest.raises(UnsupportedOption, match="backend cannot honour ov_config"):
        found(ov_config={"A": "b"})
    with pytest.raises(UnsupportedOption, match="endpoint backend cannot do task 'translation'") as raised:
        found(task="translation")
    assert raised.value.hint == "Only text-generation is supported."


def test_what_it_cannot_honour_is_refused(server):
    with pytest.raises(UnsupportedOption, match="The endpoint backend cannot honour exact"):
        rows("endpoint", endpoint=server.url, exact=True)
    with pytest.raises(UnsupportedOption, match="The torch backend cannot honour endpoint"):
        rows("torch", endpoint=server.url)


def test_ones_own_prompts_are_put_as_batch_puts_them(server, tmp_path):
    lines = [{"prompt": "a"}, {"messages": [{"role": "system", "content": "b"}], "max_tokens": 2}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (one,), _ = rows("endpoint", prompts=read_prompts(tmp_path / "in.jsonl"), endpoint=server.url)
    assert [(list(prompt), tokens) for prompt, tokens in one.prompts] == [
        ([{"role": "user", "content": "a"}], 4),
        ([{"role": "system", "content": "b"}], 2),
    ]


def test_the_command(server, tmp_path):
    options = (
        "-b",
        "endpoint",
        "--endpoint",
        server.url + "?key=s3cret",
        "-r",
        "1",
        "-p",
        "6",
        "-g",
        "4",
        "--batch",
        "2",
    )
    ended = run_hfpipe("bench", MODEL, *options, "--no-quality", "-o", tmp_path / "report.json")
    assert ended.code == 0, ended
    assert b"endpoint (network)" in ended.out
    assert b"measures the network" in ended.out
    report = (tmp_path / "report.json").read_text()
    assert "s3cret" not in report
    (row,) = json.loads(report)["configurations"]
    assert row["error"] is None
    values = {name for sample in row["samples"] for name in sample["values"]}
    assert {"cold_ttft_s", "ttft_ms", "tpot_ms", "pp6", "batch2_tps"} <= values
    assert row["device"] == "127.0.0.1"
