"""Answers of real engines: nothing but the answer on stdout, nothing on stderr, and what --json and --stats say."""

import json

import pytest

from tests.cli.shell import run_hfpipe

SAMPLED = ("--seed", "7", "--temp", "1.5", "--max-new-tokens", "12")
COUNTS_AND_TIMES = {
    "finish_reason": str,
    "usage": dict,
    "seed": int,
    "model": str,
    "backend": str,
    "why": str,
    "device": str,
    "dtype": str,
    "detail": dict,
    "load_s": float,
    "ttft_ms": float,
    "cold_ttft_s": float,
    "prefill_tps": float,
    "decode_tps": float,
    "tokens_per_step": float,
    "peak_rss_mb": float,
}


def check_account(account, text):
    assert account.pop("text") == text
    assert {name: type(value) for name, value in account.items()} == COUNTS_AND_TIMES
    usage = account["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < account["load_s"] < account["cold_ttft_s"]
    assert 0 < account["ttft_ms"] / 1000 < account["cold_ttft_s"]


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_sampled_answer_twice(request, engine):
    """The second time as JSON: two starts of torch are enough."""
    model = request.getfixturevalue("tiny_llama" if engine == "torch" else "tiny_llama_ov")
    streamed = run_hfpipe("run", model, "What is EEG?", *SAMPLED)
    assert (streamed.code, streamed.err) == (0, b"")
    text = streamed.out.decode()
    assert text.endswith("\n")
    ended = run_hfpipe("run", model, "What is EEG?", *SAMPLED, "--json")
    assert ended.err == b""
    account = json.loads(ended.out)
    assert ended.out.count(b"\n") == 1
    assert account["backend"] == engine
    assert account["seed"] == 7
    assert account["usage"]["completion_tokens"] <= 12
    check_account(account, text.removesuffix("\n"))


def test_a_seed_that_was_drawn_is_told_and_gives_the_same_answer(tiny_llama_ov):
    drawn = json.loads(run_hfpipe("run", tiny_llama_ov, "hi", "--temp", "1.5", "--json").out)
    again = run_hfpipe("run", tiny_llama_ov, "hi", "--temp", "1.5", "--seed", drawn["seed"])
    assert again.out.decode() == drawn["text"] + "\n"


def test_another_seed_is_another_answer(tiny_llama_ov):
    answers = {run_hfpipe("run", tiny_llama_ov, "hi", "--temp", "1.5", "--seed", seed).out for seed in "12"}
    assert len(answers) == 2


def test_both_engines_say_the_same(tiny_gpt2, tiny_gpt2_ov):
    torch = run_hfpipe("run", tiny_gpt2, "What is EEG?", "-n", "30")
    openvino = run_hfpipe("run", tiny_gpt2_ov, "What is EEG?", "-n", "30", "--exact")
    assert torch.out == openvino.out
    assert (torch.err, openvino.err) == (b"", b"")
    assert len(torch.out) > 20


def test_what_else_may_be_said_is_not_part_of_the_answer(tiny_llama_ov):
    args = ("run", tiny_llama_ov, "hi", "-n", "8")
    ended = run_hfpipe(*args, "--stats")
    rows = dict(line.split("  ", 1) for line in ended.err.decode().splitlines())
    assert [*rows] == [
        "backend",
        "runs on",
        "load",
        "first token",
        "prompt",
        "completion",
        "finish reason",
        "seed",
        "peak memory",
    ]
    assert "the folder holds an OpenVINO model" in rows["backend"]
    assert "8 tokens" in rows["completion"]
    # OpenVINO writes its log to stdout.
    verbose = run_hfpipe(*args, "--verbose", env={"OPENVINO_LOG_LEVEL": "3"})
    assert verbose.out == ended.out == run_hfpipe(*args).out


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_prompt_lookup(request, engine):
    """The account of the answer says how many tokens a step gave."""
    model = request.getfixturevalue("tiny_gpt2" if engine == "torch" else "tiny_gpt2_ov")
    args = ("run", model, "one two three " * 9, "-n", "60", "--exact", "--json")
    plain, found = (json.loads(run_hfpipe(*args, *more).out) for more in ((), ("--prompt-lookup", "5")))
    assert found["text"] == plain["text"]
    assert found["usage"] == plain["usage"]
    assert found["tokens_per_step"] > plain["tokens_per_step"] == 1
    assert found["detail"]["prompt lookup"] == "5"
    shown = run_hfpipe(*args[:-1], "--prompt-lookup", "5", "--stats").err.decode()
    assert f"a second, {found['tokens_per_step']} a step" in shown


@pytest.mark.parametrize(
    "settings",
    [
        ["PERFORMANCE_HINT=LATENCY", "NUM_STREAMS=1", "KV_CACHE_PRECISION=u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE=32"],
        ['{"PERFORMANCE_HINT": "LATENCY", "KV_CACHE_PRECISION": "f16"}', '{"NUM_STREAMS": 1}'],
    ],
)
def test_openvino_settings(tiny_llama_ov, settings):
    options = [word for setting in settings for word in ("--ov-config", setting)]
    ended = run_hfpipe("run", tiny_llama_ov, "hi", "-n", "4", "--stats", *options)
    assert ended.code == 0, ended.err
    shown = ended.err.decode()
    for key in ("NUM_STREAMS 1", "PERFORMANCE_HINT LATENCY", "KV_CACHE_PRECISION "):
        assert key in shown


def test_a_compile_cache_of_ones_own(tiny_llama_ov, tmp_path):
    ended = run_hfpipe("run", tiny_llama_ov, "hi", "-n", "4", "--ov-config", f"CACHE_DIR={tmp_path}")
    assert (ended.code, ended.err) == (0, b"")
    assert [*tmp_path.glob("*.blob")]


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ([r"\n"], "one"),
        (["two"], "one\n"),
        (["nowhere", r"wo\nth"], "one\nt"),
        (["one"], ""),
        ([r"\\n"], "one\ntwo\nthree"),
    ],
)
def test_stop(plain_model, stops, expected):
    options = [word for stop in stops for word in ("--stop", stop)]
    ended = run_hfpipe("run", plain_model, "-b", "echo", "-t", "raw", *options, input="one\ntwo\nthree")
    assert (ended.code, ended.out.decode()) == (0, expected + "\n")
