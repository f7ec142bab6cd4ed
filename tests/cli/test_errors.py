"""What goes wrong is one line, and the next step a second; the exit code is the README's."""

import json

import pytest

from tests.cli.conftest import write_echo_model
from tests.cli.shell import run_hfpipe
from tests.fake_models import write_gguf, write_model

DEVICE_MAP = "device_map auto lets Accelerate place the model"


def failure(code, *args, **settings):
    ended = run_hfpipe("run", *args, **settings)
    assert (ended.code, ended.out) == (code, b""), ended
    return ended


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["--foo"], "No such option '--foo'.", "hfpipe run --help lists"),
        (["-5 + 3"], "No such option '-5'.", "write -- before a prompt that begins with -."),
        (["--top-k", "many"], "'many' is not a valid integer", "hfpipe run --help lists"),
        (["--temperature", "hot"], "'hot' is not a valid float", "hfpipe run --help lists"),
        (["--seed"], "Option '--seed' requires an argument.", "hfpipe run --help lists what can be given."),
        (["another"], "unexpected extra argument", "Quote a prompt of several words."),
        (["--temperature", "-1"], "temperature must be from 0 (greedy) to 1000, not -1.0.", ""),
        (["--stop", ""], "A stop string cannot be empty.", ""),
        (["-d", "0", "--device-map", "auto"], "device and device_map exclude each other.", DEVICE_MAP),
        (["--ov-config", "NUM_STREAMS"], "--ov-config takes KEY=VALUE, not 'NUM_STREAMS'.", ""),
        (["--ov-config", '{"A": '], "--ov-config is not valid JSON:", ""),
        (["--model-kwarg", "x"], "--model-kwarg takes KEY=VALUE, not 'x'.", ""),
        (["-b", "openvio"], "Unknown backend 'openvio'; known are auto, torch, openvino", "Did you mean 'openvino'?"),
        (["-b", "openvino", "--attn", "sdpa"], "openvino backend cannot honour --attn.", "--backend torch"),
        (["-b", "torch", "--ov-config", "A=1"], "torch backend cannot honour --ov-config.", "--backend openvino"),
        (["-b", "echo", "--model-kwarg", "a=1"], "echo backend cannot honour --model-kwarg a.", "--backend torch"),
        (["-b", "torch", "--task", "summarization"], "cannot do --task summarization.", "text-generation"),
    ],
)
def test_wrong_usage(plain_model, args, error, hint):
    ended = failure(2, plain_model, "hi", *args)
    assert error in ended.error
    assert hint in ended.hint


def test_a_default_backend_is_checked_too(plain_model):
    ended = failure(2, plain_model, "hi", "--ov-config", "A=1")
    assert "torch backend cannot honour --ov-config" in ended.error


@pytest.mark.parametrize(
    ("args", "error"), [([], "Missing argument 'MODEL'."), (["--json=maybe", "x"], "does not take a value")]
)
def test_wrong_usage_of_run(args, error):
    assert error in failure(2, *args).error


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["rum", "x"], "No such command 'rum'. Did you mean 'run'?", "hfpipe --help lists"),
        (["--foo"], "No such option '--foo'.", "hfpipe --help lists"),
        (["batch", "--xyz"], "No such option '--xyz'.", "hfpipe batch --help lists what can be given."),
        (["pull", "gpt2"], "hfpipe has no command 'pull'.", "hfpipe run MODEL downloads"),
        (["list"], "hfpipe has no command 'list'.", "hfpipe models lists"),
        (["rm", "gpt2"], "hfpipe has no command 'rm'.", "hfpipe models rm NAME"),
        (["help", "rum"], "No such command 'rum'. Did you mean 'run'?", "hfpipe --help lists"),
    ],
)
def test_wrong_usage_of_hfpipe(args, error, hint):
    ended = run_hfpipe(*args)
    assert (ended.code, ended.error) == (2, error)
    assert hint in ended.hint


def test_a_wrong_value_from_the_environment_says_so(plain_model):
    ended = failure(2, plain_model, "hi", env={"HFPIPE_TOP_K": "many"})
    assert ended.hint == "It comes from the environment: HFPIPE_TOP_K=many"


@pytest.mark.parametrize(
    ("reference", "error", "hint"),
    [
        ("smolm2", "smolm2 is not in the cache, and HF_HUB_OFFLINE forbids", "Did you mean 'smollm2'?"),
        ("gpt3", "gpt3 is not in the cache, and HF_HUB_OFFLINE forbids", "Did you mean 'gpt2'?"),
        ("org/name", "org/name is not in the cache, and HF_HUB_OFFLINE forbids", "Unset HF_HUB_OFFLINE"),
        ("./nowhere", "There is no folder or file ./nowhere.", ""),
        ("nowhere.gguf", "There is no folder or file nowhere.gguf.", ""),
        ("gpt2@main", "gpt2@main is not a model's name.", "Write gpt2, and --revision main"),
        ("", "The name of the model is empty.", "A model is a folder"),
        ("a b", "'a b' is neither a folder nor the name of a model.", "A model is a folder"),
    ],
)
def test_an_unknown_model(tmp_path, reference, error, hint):
    (tmp_path / "hub" / "models--gpt2").mkdir(parents=True)
    ended = failure(1, reference, "hi", env={"HF_HOME": str(tmp_path)}, cwd=tmp_path)
    assert error in ended.error
    assert hint in ended.hint


def test_folders_that_are_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a model: it has no config.json" in failure(1, tmp_path / "empty", "hi").error
    pickled = write_model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    ended = failure(1, pickled, "hi")
    assert "pickles only (pytorch_model.bin)" in ended.error
    assert "--allow-pickle" in ended.hint
    without = write_model(tmp_path / "without")
    (without / "tokenizer.json").unlink()
    assert "tokenizer" in failure(1, without, "hi", "-b", "echo").error


def test_a_revision_of_a_folder(plain_model):
    ended = failure(2, plain_model, "hi", "--revision", "main")
    assert "has no revisions: --revision goes with a Hub id." in ended.error


def test_a_model_of_sound(tmp_path):
    model = write_echo_model(tmp_path / "whisper", model_type="whisper", is_encoder_decoder=True)
    ended = failure(1, model, "hi", "-b", "torch")
    assert "whisper is a model of sound or images, not of text." in ended.error
    assert "text2text-generation" in ended.hint


def test_a_gguf_of_a_tokenizer_that_is_not_known(tmp_path):
    file = write_gguf(tmp_path / "x.gguf", tokenizer_ggml_pre="mystery")
    ended = failure(1, file, "hi")
    assert "mystery" in ended.error
    assert ended.hint


def test_a_device_that_is_not_here(tiny_gpt2, tiny_gpt2_ov):
    ended = failure(1, tiny_gpt2, "hi", "--device", "7")
    assert "There is no device '7' on this machine; available: cpu (1)" in ended.error
    ended = failure(1, tiny_gpt2_ov, "hi", "--device", "7")
    assert "Device '7' not found. Available: CPU" in ended.error


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("NO_SUCH_KEY=1", "NO_SUCH_KEY"),
        ("NUM_STREAMS=many", "number of streams from str: many"),
        ("PERFORMANCE_HINT=FAST", "PERFORMANCE_HINT"),
    ],
)
def test_openvino_refuses_a_setting(tiny_gpt2_ov, setting, error):
    ended = failure(2, tiny_gpt2_ov, "hi", "--ov-config", setting)
    assert error in ended.error
    assert "Usual keys of --ov-config" in ended.hint


def test_debugging_shows_the_traceback(plain_model):
    ended = run_hfpipe("run", plain_model, "hi", "--top-p", "7", env={"HFPIPE_DEBUG": "1"})
    text = ended.err.decode()
    assert ended.code == 2
    assert text.startswith("Traceback (most recent call last):")
    assert text.splitlines()[-1] == "Error: top_p must be above 0 and at most 1, not 7.0."


def test_a_cache_that_cannot_be_written(tiny_gpt2, tmp_path):
    (tmp_path / "file").write_text("")
    ended = failure(1, tiny_gpt2, "hi", "-b", "openvino", env={"HFPIPE_CACHE": str(tmp_path / "file")})
    assert "Cannot write to" in ended.error
    assert "HFPIPE_CACHE" in ended.hint


def test_a_broken_config(tmp_path):
    model = write_echo_model(tmp_path / "m")
    (model / "config.json").write_text(json.dumps([1]))
    assert "holds no JSON object" in failure(1, model, "hi").error
