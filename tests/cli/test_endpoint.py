"""`hfpipe run` and `hfpipe batch` on a hosted model: as on a loaded one, without loading anything."""

import json
import signal
import subprocess
import sys

import pytest

from tests.cli.shell import end_by, run_hfpipe, started, wait_for
from tests.endpoint.servers import MODEL, LoopbackServer, after_text, choice, cut, silent, status
from tests.test_import_time import loaded


@pytest.fixture
def server():
    with LoopbackServer() as made:
        yield made


def test_run_answers(server):
    ended = run_hfpipe("run", MODEL, "one two", "--endpoint", server.url)
    assert (ended.code, ended.out, ended.err) == (0, b"one two\n", b"")
    stdin = run_hfpipe("run", MODEL, "-", "-n", "1", input="one two", env={"HFPIPE_ENDPOINT": server.url})
    assert stdin.out == b"one \n"
    # The Hub's name for the model is not looked up.
    assert server.bodies[-1]["model"] == MODEL


def test_run_accounts_for_an_answer(server):
    common = ("run", MODEL, "one two", "--endpoint", server.url)
    said = json.loads(run_hfpipe(*common, "--json", "--seed", "3", "--temp", "1").out)
    assert said["text"] == "one two"
    assert said["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert (said["seed"], said["backend"], said["device"]) == (3, "endpoint", "127.0.0.1")
    assert said["detail"] == {"url": server.url}
    stats = run_hfpipe(*common, "--stats").err.decode()
    assert f"url {server.url}" in stats
    assert "seed           none was sent" in stats
    server.counts = False
    assert "not counted by the server" in run_hfpipe(*common, "--stats").err.decode()
    assert json.loads(run_hfpipe(*common, "--json").out)["usage"] is None


def test_run_shows_the_messages_that_it_sends(server):
    ended = run_hfpipe("run", MODEL, "hi", "-s", "Be brief.", "--show-prompt", "--endpoint", server.url)
    assert json.loads(ended.err) == server.bodies[-1]["messages"]
    assert [one["content"] for one in server.bodies[-1]["messages"]] == ["Be brief.", "hi"]


def test_what_an_answer_was_until_it_broke_off_is_written(server):
    server.faults.append(after_text(cut))
    ended = run_hfpipe("run", MODEL, "hi", "--endpoint", server.url)
    assert ended.code == 1
    assert ended.out == b"half "
    assert "broke off" in ended.error
    assert ended.hint


def test_what_came_before_a_filter_ended_the_answer_is_written(server):
    def fault(handler):
        handler.event(choice("", "content_filter"))
        handler.chunk(b"")

    server.faults.append(after_text(fault))
    ended = run_hfpipe("run", MODEL, "hi", "--endpoint", server.url)
    assert (ended.code, ended.out) == (1, b"half ")
    assert ended.error == "The server's filter ended the answer."


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--exact",), 2, "The endpoint backend cannot honour --exact."),
        (("--revision", "main"), 2, "The endpoint backend cannot honour --revision."),
        (("-b", "openvino"), 2, "The openvino backend cannot honour --endpoint."),
        (("--timeout", "0"), 2, "timeout must be a number of seconds above 0, not 0.0."),
        (("--min-p", "0.1"), 2, "cannot honour min_p (--min-p)."),
        (("--chat-template-name", "x"), 2, "The endpoint backend cannot honour --chat-template-name"),
        (("-m", "no/model"), 1, "has no model 'no/model'."),
    ],
)
def test_what_cannot_be_had_is_one_line(server, options, code, message):
    model = () if "-m" in options else (MODEL,)
    ended = run_hfpipe("run", *model, "hi", "--endpoint", server.url, *options)
    assert ended.code == code
    assert message in ended.error
    assert ended.hint or "--timeout" in options


def test_timeout_belongs_to_endpoints(plain_model):
    ended = run_hfpipe("run", plain_model, "hi", "-b", "echo", "--timeout", "5")
    assert ended.error == "The echo backend cannot honour --timeout."
    assert ended.hint == "It belongs to --backend endpoint."


def test_export_takes_no_endpoint(server):
    ended = run_hfpipe("export", MODEL, "--endpoint", server.url)
    assert ended.code == 2
    assert "--endpoint" in ended.error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_request_outlives_ctrl_c(server, number):
    server.faults.append(after_text(silent))
    with started("run", MODEL, "hi", "--endpoint", server.url) as process:
        wait_for(lambda: server.bodies)
        assert end_by(process, number) < 5
        assert process.returncode == 130
    wait_for(lambda: server.left == 1)


INTERRUPTED = """
import sys, time, hfpipe
llm = hfpipe.load(sys.argv[1], endpoint=sys.argv[2])
try:
    llm.invoke("hi")
except KeyboardInterrupt:
    time.sleep(60)
"""


def test_no_request_outlives_ctrl_c_in_a_program_that_continues(server):
    server.faults.append(after_text(silent))
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, MODEL, server.url])
    try:
        wait_for(lambda: server.bodies)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: server.left == 1, 10)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_nothing_is_loaded_for_it(server, tmp_path):
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"question": "hi"}\n')
    common = ("--endpoint", server.url)
    for args in (("run", MODEL, "hi", "--json", *common), ("batch", lines, "-m", MODEL, *common)):
        modules = loaded(*args)
        assert "httpx" in modules
        heavy = {
            "torch",
            "transformers",
            "openvino",
            "openvino_genai",
            "numpy",
            "rich",
            "huggingface_hub.hf_api",
            "jinja2",
        }
        assert not heavy & set(modules)


# Batches


@pytest.fixture
def batch(server, tmp_path):
    """Runs a batch of the lines in `tmp_path`, whose results are in answers.jsonl there."""
    output = tmp_path / "answers.jsonl"

    def run(*options, lines=None):
        if lines is not None:
            (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        url = () if "--endpoint" in options else ("--endpoint", server.url)
        ended = run_hfpipe("batch", tmp_path / "in.jsonl", "-m", MODEL, "-o", output, *url, *options)
        return ended, [json.loads(line) for line in output.read_bytes().splitlines()] if output.exists() else []

    return run


def test_batch_answers_in_order_and_a_failure_is_a_result(server, batch):
    lines = [
        {"prompt": "a b", "max_tokens": 1},
        {"id": "x", "messages": [{"role": "user", "content": "c d"}], "stop": ["d"]},
        {"prompt": "e", "top_k": 3},
        {"prompt": "f"},
    ]
    ended, results = batch("--batch-size", "2", lines=lines)
    assert ended.code == 3
    assert [one["text"] for one in results] == ["a ", "c ", "", "f"]
    assert [one["finish_reason"] for one in results] == ["length", "stop", "error", "stop"]
    assert results[2]["error"]["type"] == "unknown_option"
    assert results[0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    assert server.most <= 2


def test_batch_asks_for_eight_at_once(server, batch):
    server.together = 8
    ended, results = batch(lines=[{"prompt": f"a {i}"} for i in range(24)])
    assert ended.code == 0
    assert [one["text"] for one in results] == [f"a {i}" for i in range(24)]
    assert server.most == 8


def test_batch_resumes_after_a_kill(server, batch, tmp_path):
    """Each record is answered once, but for those that were in flight or waited for an older one."""
    server.pause_s = 0.03
    lines = [{"prompt": f"a {i}"} for i in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "answers.jsonl"
    command = ("batch", tmp_path / "in.jsonl", "-m", MODEL, "-o", output, "--endpoint", server.url)
    with started(*command) as process:
        wait_for(lambda: output.exists() and output.read_bytes().count(b"\n") >= 10)
        process.kill()
    wait_for(lambda: server.running == 0)
    kept = output.read_bytes()
    server.pause_s = 0
    ended, results = batch()
    assert ended.code == 0, ended
    assert output.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert [one["text"] for one in results] == [f"a {i}" for i in range(40)]
    assert len(server.bodies) <= 40 + 16


def test_batch_retries_the_failed_ones(server, batch):
    server.faults += [status(400)]
    lines = [{"prompt": "a"}, {"prompt": "b"}]
    assert batch("--batch-size", "1", lines=lines)[1][0]["error"]["type"] == "engine"
    ended, results = batch("--retry-errors")
    assert ended.code == 0
    assert [one["text"] for one in results] == ["a", "b"]


def test_batch_refuses_to_resume_on_another_server_or_model(server, batch):
    batch(lines=[{"prompt": "a"}])
    with LoopbackServer() as other:
        ended, _ = batch("--endpoint", other.url)
        assert ended.code == 1
        assert f'different endpoint (then: "{server.url}", now: "{other.url}").' in ended.error
        assert other.asked == []
    for option, value, name in [("--temp", "0", "temperature"), ("--top-p", "1", "top_p"), ("--top-k", "0", "top_k")]:
        assert f"different {name} (then: none, now: {value}" in batch(option, value)[0].error
    assert batch("-n", "256")[0].code == 0
    assert batch("--endpoint", server.url + "/?key=1")[0].code == 0


@pytest.mark.parametrize("code", [401, 403])
def test_batch_ends_at_once_where_access_is_denied_and_resumes(server, batch, code):
    server.faults += [status(code)] * 30
    lines = [{"prompt": f"a {i}"} for i in range(30)]
    ended, results = batch(lines=lines)
    assert (ended.code, results) == (1, [])
    assert f"answered {code}" in ended.error
    assert "HFPIPE_ENDPOINT_TOKEN" in ended.hint
    assert len(server.bodies) <= 16
    server.faults.clear()
    ended, results = batch()
    assert ended.code == 0
    assert [one["text"] for one in results] == [f"a {i}" for i in range(30)]


def test_a_server_that_fails_for_a_record_does_not_end_the_batch(server, batch):
    """As one does whose chat template refuses a conversation."""
    server.faults += [status(500, Retry_After="0")] * 5 * 4
    ended, results = batch("--batch-size", "1", lines=[{"prompt": "a"}] * 4)
    assert ended.code == 3
    assert ["answered 500" in one["error"]["message"] for one in results] == [True] * 4


def test_batch_ends_where_the_server_has_no_such_model(server, batch):
    server.models = ("org/other",)
    ended, results = batch(lines=[{"prompt": "a"}] * 30)
    assert (ended.code, results) == (1, [])
    assert ended.error == f"{server.url} has no model '{MODEL}'."
    assert len(server.bodies) <= 16


def test_batch_ends_where_the_server_goes_away_and_resumes(server, batch):
    """After the retries of a few records, with what it has; those in flight have no result."""
    server.faults += [None] * 4 + [after_text(cut)] + [status(503, Retry_After="0")] * 400
    lines = [{"prompt": f"a {i}"} for i in range(60)]
    ended, results = batch("--batch-size", "1", lines=lines)
    assert ended.code == 1
    assert "answered 503" in ended.error
    assert [one["text"] for one in results] == [f"a {i}" for i in range(4)]
    assert len(server.bodies) == 4 + 1 + 3 * 5
    server.faults.clear()
    ended, results = batch()
    assert ended.code == 0
    assert [one["text"] for one in results] == [f"a {i}" for i in range(60)]


def test_batch_refuses_what_needs_an_exact_run(server, batch):
    ended, results = batch("--verify-parity", "1", lines=[{"prompt": "a"}])
    assert ended.code == 2
    assert ended.error == "The endpoint backend cannot honour --verify-parity."
    assert results == []
    assert server.asked == []


def test_no_request_of_a_batch_outlives_ctrl_c(server, tmp_path):
    server.faults += [after_text(silent)] * 3
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n' * 3)
    with started("batch", tmp_path / "in.jsonl", "-m", MODEL, "--endpoint", server.url) as process:
        wait_for(lambda: len(server.bodies) == 3)
        assert end_by(process) < 5
        assert process.returncode == 130
    wait_for(lambda: server.left == 3)


def test_openai_requests_go_where_they_are_meant_for(server, batch):
    lines = [
        {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a b"}},
        {
            "custom_id": "2",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": "c"}]},
        },
    ]
    ended, results = batch("--batch-size", "1", lines=lines)
    assert ended.code == 0, ended
    assert [path for path, _ in server.asked] == ["/v1/completions", "/v1/chat/completions"]
    assert results[0]["response"]["body"]["choices"][0]["text"] == "a b"
    assert results[1]["response"]["body"]["choices"][0]["message"]["content"] == "c"
