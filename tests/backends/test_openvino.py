"""The OpenVINO engine: modes, devices, models, and what it says when something fails."""

import json
import os
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from hfpipe import models
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino import decoding, loading, optimum_cli
from hfpipe.errors import BackendError, HFPipeError, ModelError, OutOfMemory
from hfpipe.types import LoadOptions, Silent, TokenEvent, TokenRequest
from tests import tiny
from tests.backends import running
from tests.backends.running import answers
from tests.recorder import Recorder

MODES = {"SDPA": 1, "paged": 4}
ASK = TokenRequest("a", (20, 30, 40), 5)


def load(folder: Path, batch_size: int, **options: object) -> Backend:
    return running.load("openvino", folder, batch_size=batch_size, **options)


def works(backend: Backend) -> bool:
    return len(answers(backend, [ASK])["a"]) == 5


@pytest.fixture
def copy(cache, tiny_llama_ov, tmp_path) -> Path:
    """A copy of the export that a test may spoil."""
    return Path(shutil.copytree(tiny_llama_ov, tmp_path / "copy"))


# Modes


@pytest.mark.parametrize(("batch_size", "mode"), [(1, "SDPA"), (2, "paged"), (None, "paged")])
def test_the_mode_goes_by_the_batch_size(tiny_llama_ov, batch_size, mode):
    with load(tiny_llama_ov, batch_size) as backend:
        assert backend.info.detail["mode"] == mode
        assert backend.info.device == "CPU"
        assert getattr(backend, "batch_size", 1) == (batch_size or decoding.DEFAULT_WINDOW)


@pytest.mark.parametrize("mode", MODES)
def test_the_engine_leaves_nothing_behind(capfd, tiny_llama_ov, mode):
    """However its streams end. The paged engine complains on stderr of blocks that are not freed in the end."""
    requests = [TokenRequest(str(n), tuple(range(10, 50)), 30) for n in range(6)]
    with load(tiny_llama_ov, MODES[mode]) as backend:
        for event in backend.stream(requests):
            backend.cancel(event.request_id)
        stream = backend.stream(requests)
        next(stream)
        with pytest.raises(KeyError):
            stream.throw(KeyError("the caller's own"))
        stream = backend.stream(requests)
        next(stream)
        stream.close()
    assert capfd.readouterr().err == ""


def test_what_nobody_reads_is_not_generated(monkeypatch, tiny_llama_ov):
    """In a thread of its own, the engine hears of it with the next token."""
    written, write = [], decoding._Streamer.write
    monkeypatch.setattr(decoding._Streamer, "write", lambda self, token: written.append(token) or write(self, token))
    with load(tiny_llama_ov, 1) as backend:
        stream = backend.stream([TokenRequest("a", (20, 30, 40), 400)])
        next(stream)
        stream.close()
        assert works(backend)
    assert len(written) < 400


def test_a_thread_that_cannot_start_is_an_error_and_the_next_call_works(monkeypatch, tiny_llama_ov):
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", tiny.no_thread)
        with pytest.raises(HFPipeError, match="The system starts no more threads") as raised:
            load(tiny_llama_ov, 1)
    assert "ulimit -u" in raised.value.hint
    with load(tiny_llama_ov, 1) as backend:
        assert works(backend)


# Devices


@pytest.mark.parametrize(
    ("given", "here", "meant"),
    [
        *[(given, ["CPU"], "CPU") for given in (None, "-1", "cpu", "CPU", "Cpu")],
        ("0", ["CPU", "GPU"], "GPU.0"),
        ("1", ["CPU", "GPU.0", "GPU.1"], "GPU.1"),
        ("gpu", ["CPU", "GPU.0", "GPU.1"], "GPU"),
    ],
)
def test_what_a_device_means(monkeypatch, given, here, meant):
    """One that is idle is named."""
    monkeypatch.setattr(loading.ov, "Core", lambda: SimpleNamespace(available_devices=here))
    reporter = Recorder()
    assert loading.check_device(given, reporter) == meant
    assert reporter.notes == []
    monkeypatch.setattr(loading.ov, "Core", lambda: SimpleNamespace(available_devices=["CPU", "GPU"]))
    assert loading.check_device(None, reporter) == "CPU"
    assert reporter.notes == ["Running on the CPU; GPU is available (--device GPU)."]


@pytest.mark.parametrize("device", ["7", "GPU", "npu", "banana", "cuda:0", "", "GPU.1"])
def test_a_device_that_is_not_here(tiny_llama_ov, device):
    with pytest.raises(BackendError, match=f"Device '{device}' not found. Available: CPU") as raised:
        load(tiny_llama_ov, 1, device=device)
    assert "--backend torch" in raised.value.hint


@pytest.mark.parametrize("device", ["AUTO", "auto:cpu", "HETERO:CPU"])
@pytest.mark.parametrize("mode", MODES)
def test_virtual_devices(tiny_llama_ov, device, mode):
    with load(tiny_llama_ov, MODES[mode], device=device) as backend:
        assert backend.info.device == device.upper()
        assert works(backend)


# Failing


TRAIL = "Exception from src/core/x.cpp:12:\nCheck 'a' failed at src/core/y.cpp:3:\nThe device was lost\n\n"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError(TRAIL), BackendError, "OpenVINO on CPU: The device was lost"),
        (MemoryError("std::bad_alloc"), OutOfMemory, "MemoryError: std::bad_alloc"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_request_that_the_engine_does_not_take(monkeypatch, tiny_llama_ov, mode, error, kind, message):
    """It fails alone, in one line."""
    real = decoding.generation_config

    def refuse(request: TokenRequest) -> object:
        if request.id == "bad":
            raise error
        return real(request)

    with load(tiny_llama_ov, MODES[mode]) as backend:
        alone = answers(backend, [ASK])
        monkeypatch.setattr(decoding, "generation_config", refuse)
        events = list(backend.stream([TokenRequest("bad", (1, 2), 5), ASK]))
    (bad,) = [event for event in events if event.request_id == "bad"]
    assert bad == TokenEvent("bad", finish_reason="error", error=bad.error)
    assert (type(bad.error), bad.error.message) == (kind, message)
    assert [token for event in events if event.request_id == "a" for token in event.token_ids] == alone["a"]


# Models


def test_a_transformers_folder_is_exported_once(tiny_llama, tiny_llama_ov):
    """tiny_llama_ov is that export."""
    reporter = Recorder()
    assert optimum_cli.own_export(models.resolve(str(tiny_llama)), LoadOptions(), reporter) == tiny_llama_ov
    assert reporter.notes == []
    with load(tiny_llama, 1) as backend:
        assert works(backend)


@pytest.mark.parametrize(
    ("own", "exact", "dtype"),
    [
        ("float32", False, "fp32"),
        ("float16", False, "fp16"),
        ("bfloat16", False, "fp16"),
        ("bfloat16", True, "fp32"),
        (None, False, "fp32"),
    ],
)
def test_the_precision_of_an_export(monkeypatch, cache, tiny_llama, tmp_path, own, exact, dtype):
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": own}))
    asked = []
    monkeypatch.setattr(optimum_cli, "run_export", lambda source, command, **more: asked.append(command))
    reporter = Recorder()
    folder = optimum_cli.own_export(models.resolve(str(copy)), LoadOptions(exact=exact), reporter)
    assert [command[command.index("--weight-format") + 1] for command in asked] == [dtype]
    assert folder.name.endswith(dtype)
    assert f"({dtype}), once" in reporter.notes[0]


def test_a_changed_model_is_exported_anew(monkeypatch, cache, tiny_llama, tmp_path):
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    monkeypatch.setattr(optimum_cli, "run_export", lambda *arguments, **more: None)

    def folder() -> Path:
        return optimum_cli.own_export(models.resolve(str(copy)), LoadOptions(), Silent())

    first = folder()
    assert folder() == first
    os.utime(copy / "model.safetensors", ns=(5, 5))
    assert folder() == first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert folder() != first


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("openvino_model.xml", lambda data: data[:1000], ""),
        ("openvino_model.bin", lambda data: data[:1000], ""),
        (
            "openvino_model.xml",
            lambda data: re.sub(rb'offset="\d+"', f'offset="{2**64}"'.encode(), data, count=1),
            "a number in it is too large, or is none",
        ),
    ],
)
def test_a_damaged_model(copy, mode, name, spoil, message):
    (copy / name).write_bytes(spoil((copy / name).read_bytes()))
    with pytest.raises(ModelError) as raised:
        load(copy, MODES[mode])
    assert raised.value.message.startswith(f"OpenVINO cannot read {copy / 'openvino_model.xml'}: {message}")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("constants", "shown"),
    [
        ([("f32", 400), ("i64", 8)], "float32"),
        ([("f16", 900), ("f32", 4)], "float16"),
        ([("u8", 900), ("f16", 80), ("u8", 80)], "int8"),
        ([("i4", 450), ("u8", 300), ("f16", 80)], "int4"),
        ([("nf4", 450), ("u8", 300), ("f16", 80)], "nf4"),
        ([("f4e2m1", 450), ("f8e8m0", 30)], "fp4"),
        ([("f8e4m3", 450)], "fp8"),
        ([], "unknown"),
    ],
)
def test_the_weight_format_is_what_most_bytes_are(tmp_path, constants, shown):
    layers = "".join(
        f'<layer id="1" name="{kind}" type="Const">\n<data element_type="{kind}" shape="1" size="{size}"/>'
        for kind, size in constants
    )
    (tmp_path / "openvino_model.xml").write_text(f"<net>{layers}</net>")
    assert loading.weight_format(tmp_path) == shown


def test_numbers_of_a_codebook_are_its_format(tmp_path):
    """The codebook itself is no weight."""
    constants = [("a_nncf_codebook_idxs", "u4", 100), ("a", "f8e4m3", 16), ("b", "u8", 100)]
    layers = "".join(
        f'<layer id="1" name="{name}" type="Const">\n<data element_type="{kind}" shape="1" size="{size}"/>'
        for name, kind, size in constants
    )
    (tmp_path / "openvino_model.xml").write_text(f"<net>{layers}</net>")
    assert loading.weight_shares(tmp_path) == {"cb4": 2 / 3, "int8": 1 / 3}
