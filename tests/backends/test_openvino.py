"""The OpenVINO engine: modes, devices, models, and what it says when something fails."""

import json
import os
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino import decoding, loading
from hfpipe.errors import BackendError, ModelError, OutOfMemory
from hfpipe.types import LoadOptions, Silent, TokenEvent, TokenRequest

MODES = {"SDPA": 1, "paged": 4}
ASK = TokenRequest("a", (20, 30, 40), 5)


def load(folder: Path, batch_size: int, **options: object) -> Backend:
    return backends.load("openvino", models.resolve(str(folder)), LoadOptions(batch_size=batch_size, **options))


def ids(backend: Backend, *requests: TokenRequest) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in backend.stream(requests or [ASK]):
        assert event.error is None
        found.setdefault(event.request_id, []).extend(event.token_ids)
    return found


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


# Modes


@pytest.mark.parametrize(("batch_size", "mode"), [(1, "SDPA"), (2, "paged"), (None, "paged")])
def test_the_mode_goes_by_the_batch_size(tiny_llama_ov, batch_size, mode):
    with load(tiny_llama_ov, batch_size) as backend:
        assert backend.info.detail["mode"] == mode
        assert backend.info.device == "CPU"
        assert getattr(backend, "batch_size", 1) == (batch_size or decoding.DEFAULT_WINDOW)


@pytest.mark.parametrize("end", ["whole", "cancelled", "closed", "failed"])
@pytest.mark.parametrize("mode", MODES)
def test_the_engine_leaves_nothing_behind(capfd, tiny_llama_ov, mode, end):
    """The paged engine complains on stderr of blocks that were not freed when it is destroyed."""
    backend = load(tiny_llama_ov, MODES[mode])
    stream = backend.stream(
        [TokenRequest(str(n), tuple(range(10, 50)), 30) for n in range(1 if end == "cancelled" else 6)]
    )
    for event in stream:
        if end == "cancelled":
            backend.cancel(event.request_id)
        elif end == "closed":
            break
        elif end == "failed":
            with pytest.raises(KeyError):
                stream.throw(KeyError("the caller's own"))
    stream.close()
    backend.close()
    assert capfd.readouterr().err == ""


def test_what_nobody_reads_is_not_generated(monkeypatch, tiny_llama_ov):
    """In a thread of its own, the engine hears of it with the next token."""
    written, write = [], decoding._Streamer.write
    monkeypatch.setattr(decoding._Streamer, "write", lambda self, token: written.append(token) or write(self, token))
    with load(tiny_llama_ov, 1) as backend:
        stream = backend.stream([TokenRequest("a", (20, 30, 40), 400)])
        next(stream)
        stream.close()
        assert len(ids(backend)["a"]) == 5
    assert len(written) < 400


def test_a_thread_that_cannot_start_is_an_error_and_the_next_call_works(monkeypatch, tiny_llama_ov):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(BackendError, match="Cannot start the thread that generates") as raised:
            load(tiny_llama_ov, 1)
    assert "ulimit -u" in raised.value.hint
    with load(tiny_llama_ov, 1) as backend:
        assert len(ids(backend)["a"]) == 5


# Devices


@pytest.mark.parametrize("device", [None, "-1", "cpu", "CPU", "Cpu"])
def test_the_cpu(device):
    assert loading.check_device(device, Silent()) == "CPU"


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
        assert len(ids(backend)["a"]) == 5


@pytest.mark.parametrize(
    ("given", "here", "meant"),
    [
        ("0", ["CPU", "GPU"], "GPU.0"),
        ("1", ["CPU", "GPU.0", "GPU.1"], "GPU.1"),
        ("gpu", ["CPU", "GPU.0", "GPU.1"], "GPU"),
    ],
)
def test_a_number_is_a_gpu(monkeypatch, given, here, meant):
    _only(monkeypatch, here)
    assert loading.check_device(given, Silent()) == meant


def test_an_idle_device_is_named(monkeypatch):
    _only(monkeypatch, ["CPU", "GPU"])
    reporter = Notes()
    assert loading.check_device(None, reporter) == "CPU"
    assert reporter.notes == ["Running on the CPU; GPU is available (--device GPU)."]
    loading.check_device("-1", reporter)
    assert len(reporter.notes) == 1


def _only(monkeypatch: pytest.MonkeyPatch, devices: list[str]) -> None:
    class Core:
        available_devices = devices

    monkeypatch.setattr(loading.ov, "Core", Core)


# Failing


class Broken:
    """An engine that fails after some steps."""

    def __init__(self, inside: object, steps: int, error: Exception) -> None:
        self.inside = inside
        self.steps = steps
        self.error = error

    def __getattr__(self, name: str) -> object:
        return getattr(self.inside, name)

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise self.error
        self.inside.step()


TRAIL = "Exception from src/core/x.cpp:12:\nCheck 'a' failed at src/core/y.cpp:3:\nThe device was lost\n\n"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError(TRAIL), BackendError, "OpenVINO on CPU: The device was lost"),
        (MemoryError("std::bad_alloc"), OutOfMemory, "MemoryError: std::bad_alloc"),
    ],
)
def test_an_engine_that_fails_ends_each_request_with_an_event(tiny_llama_ov, error, kind, message):
    with load(tiny_llama_ov, 4) as backend:
        whole = ids(backend)
        good, backend._pipeline = backend._pipeline, Broken(backend._pipeline, 3, error)
        events = list(backend.stream([TokenRequest(str(n), (20 + n, 30), 9) for n in range(6)]))
        backend._pipeline = good
        ends = {event.request_id: event for event in events if event.finish_reason is not None}
        assert sorted(ends) == list("012345")
        for event in ends.values():
            assert type(event.error) is kind
            assert event.error.message == message
        assert ids(backend) == whole


def test_a_request_that_the_engine_does_not_take(monkeypatch, tiny_llama_ov):
    with load(tiny_llama_ov, 4) as backend:
        alone = ids(backend)["a"]
        real = decoding.generation_config

        def refuse(request: TokenRequest) -> object:
            if request.id == "bad":
                raise RuntimeError(TRAIL)
            return real(request)

        monkeypatch.setattr(decoding, "generation_config", refuse)
        events = list(backend.stream([TokenRequest("bad", (1, 2), 5), ASK]))
    assert [event for event in events if event.request_id == "bad"] == [
        TokenEvent("bad", finish_reason="error", error=events[0].error)
    ]
    assert [token for event in events if event.request_id == "a" for token in event.token_ids] == alone


def test_a_single_answer_that_fails(monkeypatch, tiny_llama_ov):
    def refuse(request: TokenRequest) -> object:
        raise RuntimeError(TRAIL)

    with load(tiny_llama_ov, 1) as backend:
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "generation_config", refuse)
            events = list(backend.stream([ASK]))
        assert [event.finish_reason for event in events] == ["error"]
        assert events[0].error.message == "OpenVINO on CPU: The device was lost"
        assert len(ids(backend)["a"]) == 5


def test_a_kv_cache_that_is_too_small(monkeypatch, tiny_llama_ov):
    """A request that can never be scheduled fails; the next is answered."""
    real = decoding.genai.SchedulerConfig

    def small() -> object:
        config = real()
        config.num_kv_blocks = 2
        return config

    monkeypatch.setattr(decoding.genai, "SchedulerConfig", small)
    with load(tiny_llama_ov, 4) as backend:
        events = list(backend.stream([TokenRequest("big", tuple(range(10, 390)), 5)]))
        assert [event.finish_reason for event in events] == ["error"]
        assert isinstance(events[0].error, OutOfMemory)
        assert len(ids(backend)["a"]) == 5


# Models


def test_a_transformers_folder_is_exported_once(tiny_llama, tiny_llama_ov):
    """tiny_llama_ov is that export."""
    reporter = Notes()
    source = models.resolve(str(tiny_llama))
    assert loading.model_folder(source, LoadOptions(), reporter) == tiny_llama_ov
    assert reporter.notes == []
    with load(tiny_llama, 1) as backend:
        assert len(ids(backend)["a"]) == 5


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
    monkeypatch.setattr(loading, "run_export", lambda source, command, **more: asked.append(command))
    reporter = Notes()
    folder = loading.model_folder(models.resolve(str(copy)), LoadOptions(exact=exact), reporter)
    assert [command[command.index("--weight-format") + 1] for command in asked] == [dtype]
    assert folder.name.endswith(dtype)
    assert f"({dtype}), once" in reporter.notes[0]


def test_a_changed_model_is_exported_anew(monkeypatch, cache, tiny_llama, tmp_path):
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    monkeypatch.setattr(loading, "run_export", lambda *arguments, **more: None)

    def folder() -> Path:
        return loading.model_folder(models.resolve(str(copy)), LoadOptions(), Silent())

    first = folder()
    assert folder() == first
    os.utime(copy / "model.safetensors", ns=(5, 5))
    assert folder() == first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert folder() != first


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spoil", ["xml", "bin"])
def test_a_damaged_model(cache, tiny_llama_ov, tmp_path, mode, spoil):
    copy = Path(shutil.copytree(tiny_llama_ov, tmp_path / "copy"))
    file = copy / f"openvino_model.{spoil}"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError) as raised:
        load(copy, MODES[mode])
    assert raised.value.message.startswith(f"OpenVINO cannot read {copy / 'openvino_model.xml'}: ")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("mode", MODES)
def test_a_number_that_is_too_large_in_a_model(cache, tiny_llama_ov, tmp_path, mode):
    file = Path(shutil.copytree(tiny_llama_ov, tmp_path / "copy")) / "openvino_model.xml"
    file.write_text(re.sub(r'offset="\d+"', f'offset="{2**64}"', file.read_text(), count=1))
    with pytest.raises(ModelError) as raised:
        load(file.parent, MODES[mode])
    assert raised.value.message == f"OpenVINO cannot read {file}: a number in it is too large, or is none"


@pytest.mark.parametrize(
    ("constants", "shown"),
    [
        ([("f32", 400), ("i64", 8)], "float32"),
        ([("f16", 900), ("f32", 4)], "float16"),
        ([("u8", 900), ("f16", 80), ("u8", 80)], "int8"),
        ([("i4", 450), ("u8", 300), ("f16", 80)], "int4"),
        ([("f8e4m3", 450)], "f8e4m3"),
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


def test_the_weight_format_of_an_export(tiny_gpt2_ov):
    assert loading.weight_format(tiny_gpt2_ov) == "float32"


def test_a_model_without_an_end_token_runs_to_the_limit(tiny_gpt2_ov: Path) -> None:
    source = replace(models.resolve(str(tiny_gpt2_ov)), generation_config={}, config={})
    for batch_size in (1, 2):
        with backends.load("openvino", source, LoadOptions(batch_size=batch_size)) as backend:
            events = list(backend.stream([TokenRequest("a", (5, 6, 7), max_tokens=20)]))
        assert sum(len(event.token_ids) for event in events) == 20
        assert events[-1].finish_reason == "length"
