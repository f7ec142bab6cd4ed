"""The OpenVINO engine: devices, properties, the compile cache, and what it says when something fails."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino import decoding, loading
from hfpipe.errors import BackendError, ModelError, OutOfMemory, UnsupportedModel, UsageError
from hfpipe.process import run_child
from hfpipe.types import LoadOptions, Silent, TokenEvent, TokenRequest
from tests import tiny

MODES = {"SDPA": 1, "paged": 4}
ASK = TokenRequest("a", (20, 30, 40), 5)
LONG = TokenRequest("long", tuple(range(20, 60)), 60)


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


def in_a_process(folder: Path, options: dict, *, processors: list[int] | None = None, environment=None) -> dict:
    """The ids and the details of a backend that is loaded in a process of its own. A crash there is an error here."""
    arguments = {"folder": str(folder), "options": options, "processors": processors}
    return run_child("tests.backends.openvino_child", arguments, what="The engine", environment=environment)


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


# Properties

WRONG = [
    ({"BANANA": 1}, "Unsupported property BANANA"),
    ({"NUM_STREAMS": "banana"}, "banana"),
    ({"PERFORMANCE_HINT": "banana"}, "PERFORMANCE_HINT.*LATENCY/THROUGHPUT"),
    ({"INFERENCE_PRECISION_HINT": "banana"}, "INFERENCE_PRECISION_HINT.*bf16"),
    ({"INFERENCE_NUM_THREADS": -5}, "INFERENCE_NUM_THREADS.*-5"),
    ({"KV_CACHE_PRECISION": "banana"}, "KV_CACHE_PRECISION.*u8"),
    ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": "x"}, "DYNAMIC_QUANTIZATION_GROUP_SIZE"),
    ({"ATTENTION_BACKEND": "PA"}, "--ov-config ATTENTION_BACKEND=PA"),
    ({"scheduler_config": {"a": 1}}, "--ov-config scheduler_config="),
    ({"device": "GPU"}, "--ov-config device=GPU"),
    ({"prompt_lookup": True}, "--ov-config prompt_lookup=True"),
    ({"num_streams": 1}, "--ov-config num_streams=1"),
    ({"NUM_STREAMS": None}, "--ov-config NUM_STREAMS=None"),
    ({"": "x"}, "--ov-config =x"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("properties", "message"), WRONG, ids=[str(properties) for properties, _ in WRONG])
def test_a_property_that_is_wrong(tiny_llama_ov, mode, properties, message):
    with pytest.raises(UsageError, match=message) as raised:
        load(tiny_llama_ov, MODES[mode], ov_config=properties)
    assert "\n" not in raised.value.message
    assert "/src/" not in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("mode", MODES)
def test_properties_reach_the_engine(tiny_llama_ov, mode):
    """In a process of its own, as all settings that can crash OpenVINO."""
    found = in_a_process(tiny_llama_ov, {"batch_size": MODES[mode], "ov_config": {"INFERENCE_NUM_THREADS": "1"}})
    assert found["detail"]["INFERENCE_NUM_THREADS"] == "1"
    assert len(found["ids"]["a"]) == 5


def test_exact_is_three_properties():
    options = LoadOptions(exact=True, ov_config={"NUM_STREAMS": 1})
    assert loading.properties(options, "CPU", {"A": "1"}) == ({"NUM_STREAMS": 1, **loading.EXACT}, {})


@pytest.mark.parametrize("key", loading.EXACT)
def test_a_property_that_contradicts_exact(key):
    same = {key: loading.EXACT[key]}
    assert loading.properties(LoadOptions(exact=True, ov_config=same), "CPU", {})[0] == loading.EXACT
    with pytest.raises(UsageError, match=f"--exact sets {key}={loading.EXACT[key]}; --ov-config {key}=64"):
        loading.properties(LoadOptions(exact=True, ov_config={key: 64}), "CPU", {})


# Processors


ONE_THREAD = [
    {"INFERENCE_NUM_THREADS": 1},
    {"NUM_STREAMS": len(os.sched_getaffinity(0))},
    {"INFERENCE_NUM_THREADS": 1, "EXECUTION_MODE_HINT": "ACCURACY"},
    {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"},
]


@pytest.mark.parametrize("batch_size", MODES.values(), ids=MODES)
@pytest.mark.parametrize("ov_config", ONE_THREAD, ids=str)
def test_one_thread(tiny_llama_ov, batch_size, ov_config):
    """On processors with AMX, OpenVINO dies of it in bf16, where its MLP node is used."""
    assert len(in_a_process(tiny_llama_ov, {"batch_size": batch_size, "ov_config": ov_config})["ids"]["a"]) == 5


@pytest.mark.parametrize("options", [{}, {"device": "AUTO"}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_one_processor(tiny_llama_ov, mode, options):
    processor = min(os.sched_getaffinity(0))
    found = in_a_process(tiny_llama_ov, {"batch_size": MODES[mode], **options}, processors=[processor])
    assert len(found["ids"]["a"]) == 5


def test_the_command_on_one_processor(tiny_llama_ov):
    processor = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-m", "hfpipe", "run", str(tiny_llama_ov), "hi", "-n", "4", "--stats"],
        preexec_fn=lambda: os.sched_setaffinity(0, [processor]),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()


# With fewer, SSE41, OpenVINO itself fails.
@pytest.mark.parametrize("instructions", ["AVX512_CORE", "AVX512_CORE_BF16", "AVX2"])
@pytest.mark.parametrize("mode", MODES)
def test_processors_with_fewer_instructions(tiny_llama_ov, mode, instructions):
    environment = {"ONEDNN_MAX_CPU_ISA": instructions}
    found = in_a_process(tiny_llama_ov, {"batch_size": MODES[mode]}, environment=environment)
    assert len(found["ids"]["a"]) == 5


class Compiled:
    """What OpenVINO says of a compiled model."""

    def __init__(self, precision: str, threads: int) -> None:
        kind = SimpleNamespace(get_type_name=lambda: precision)
        self.get_property = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": kind}.get


@pytest.mark.parametrize(
    ("flags", "precision", "threads", "needs"),
    [
        ("amx_bf16", "bf16", 1, True),
        ("amx_bf16", "bf16", 2, False),
        ("amx_bf16", "f16", 1, False),
        ("amx_fp16", "f16", 1, True),
        ("amx_bf16", "f32", 1, False),
        ("avx512_bf16", "bf16", 1, False),
        ("", "bf16", 1, False),
    ],
)
def test_f32_is_chosen_only_where_16_bits_crash(monkeypatch, flags, precision, threads, needs):
    """And --stats says why; what the user set is an error there, and not changed."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(loading, "_processors", lambda: f"flags: {flags}")
    core = SimpleNamespace(get_property=lambda *_: {}, compile_model=lambda *_: Compiled(precision, threads))
    monkeypatch.setattr(loading.ov, "Core", lambda: core)
    used, reasons = loading.properties(LoadOptions(), "CPU", {})
    why = f"{precision} with one thread crashes OpenVINO on this processor"
    assert used == ({"INFERENCE_PRECISION_HINT": "f32"} if needs else {})
    assert reasons == ({"INFERENCE_PRECISION_HINT": why} if needs else {})
    asked = LoadOptions(ov_config={"INFERENCE_PRECISION_HINT": precision})
    if needs:
        with pytest.raises(UsageError, match=f"INFERENCE_PRECISION_HINT={precision} cannot be used here: {why}"):
            loading.properties(asked, "CPU", {})
    else:
        assert loading.properties(asked, "CPU", {}) == (asked.ov_config, {})
    assert loading.properties(LoadOptions(exact=True), "CPU", {}) == (loading.EXACT, {})
    assert loading.properties(LoadOptions(), "GPU.0", {}) == ({}, {})


@pytest.mark.parametrize(
    ("allowed", "given", "used"), [(1, {}, "1"), (2, {}, None), (1, {"INFERENCE_NUM_THREADS": "2"}, "2")]
)
def test_a_cpu_quota_bounds_the_threads(monkeypatch, allowed, given, used):
    monkeypatch.setattr(loading.machine, "affinity", lambda: 2)
    monkeypatch.setattr(loading.machine, "processors", lambda: allowed)
    found, reasons = loading.properties(LoadOptions(ov_config=given), "CPU", {})
    assert found.get("INFERENCE_NUM_THREADS") == used
    assert reasons.get("INFERENCE_NUM_THREADS") == ("the CPU quota" if used == "1" else None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "64 (measured on this machine)"),
        ({"ov_config": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}}, "32"),
        ({"exact": True}, "0"),
    ],
)
def test_what_this_machine_was_measured_to_run_best_with(tiny_llama_ov, tmp_path, cache, mode, options, shown):
    """It is known for copies too, gives way to the user's own, and is not in the model's folder."""
    folder = Path(shutil.copytree(tiny_llama_ov, tmp_path / "exported"))
    (folder / "hfpipe.json").write_text('{"runtime": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}}')
    loading.keep_tuned(tiny_llama_ov, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"})
    with load(folder, MODES[mode], **options) as backend:
        assert backend.info.detail["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == shown


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


# The compile cache


def compiled_in(folder: Path, device: str, properties: dict) -> Path:
    return Path(loading.with_compile_cache(folder, device, properties, Silent())["CACHE_DIR"])


def blobs(cache: Path) -> list[Path]:
    return sorted(cache.glob("openvino-compiled/*/*.blob"))


def test_one_answer_at_a_time_compiles_once(cache, tiny_llama_ov):
    with load(tiny_llama_ov, 1) as backend:
        first = ids(backend)
    made = blobs(cache)
    assert made
    times = [blob.stat().st_mtime_ns for blob in made]
    with load(tiny_llama_ov, 1) as backend:
        assert ids(backend) == first
    assert blobs(cache) == made
    assert [blob.stat().st_mtime_ns for blob in made] == times


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-10],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    ],
    ids=["half", "without its end", "empty", "garbage", "half of zeros"],
)
def test_a_spoiled_blob_is_compiled_again(cache, tiny_llama_ov, spoil):
    with load(tiny_llama_ov, 1) as backend:
        first = ids(backend)
    for blob in blobs(cache):
        blob.write_bytes(spoil(blob.read_bytes()))
    for _ in range(2):
        with load(tiny_llama_ov, 1) as backend:
            assert ids(backend) == first


@pytest.mark.parametrize("first", [{}, {"INFERENCE_PRECISION_HINT": "f16"}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}])
def test_what_was_compiled_before_does_not_change_an_answer(cache, tiny_llama_ov, first):
    """OpenVINO itself takes a model that was compiled in f16, or in bf16 on AMX, for --exact too."""
    with load(tiny_llama_ov, 1, exact=True, ov_config={"CACHE_DIR": ""}) as backend:
        exact = ids(backend, LONG)
    with load(tiny_llama_ov, 1, ov_config=first) as backend:
        ids(backend, LONG)
    with load(tiny_llama_ov, 1, exact=True) as backend:
        assert ids(backend, LONG) == exact
    assert len(blobs(cache)) == 2


def test_a_compiled_model_is_kept_by_all_that_it_depends_on(cache, tiny_llama_ov, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(tiny_llama_ov, tmp_path / "copy"))
    places = [compiled_in(tiny_llama_ov, "CPU", {})]
    assert compiled_in(tiny_llama_ov, "CPU", {}) == places[0]
    places.append(compiled_in(tiny_llama_ov, "AUTO", {}))
    places.append(compiled_in(tiny_llama_ov, "CPU", {"NUM_STREAMS": 1}))
    with (copy / "openvino_model.bin").open("r+b") as weights:
        weights.write(b"1")
    places.append(compiled_in(copy, "CPU", {}))
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        places.append(compiled_in(tiny_llama_ov, "CPU", {}))
    with monkeypatch.context() as patch:
        patch.setattr(loading.machine, "processors", lambda: 77)
        places.append(compiled_in(tiny_llama_ov, "CPU", {}))
    with monkeypatch.context() as patch:
        patch.setattr(loading.ov, "__version__", "another")
        places.append(compiled_in(tiny_llama_ov, "CPU", {}))
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(cache) for place in places)


def test_the_least_used_compiled_models_are_removed(cache, tiny_llama_ov):
    folders = []
    for number in range(loading._KEPT_COMPILE_CACHES + 3):
        folders.append(compiled_in(tiny_llama_ov, "CPU", {"NUMBER": number}))
        os.utime(folders[-1], (number, number))
        # The first is used every time.
        os.utime(compiled_in(tiny_llama_ov, "CPU", {"NUMBER": 0}), (1000 + number, 1000 + number))
    left = {folder for folder in folders if folder.is_dir()}
    assert folders[0] in left
    assert left - {folders[0]} == set(folders[-loading._KEPT_COMPILE_CACHES + 1 :])


def test_a_cache_dir_of_the_users_own(cache, tmp_path, tiny_llama_ov):
    with load(tiny_llama_ov, 1, ov_config={"CACHE_DIR": str(tmp_path / "own")}) as backend:
        assert len(ids(backend)["a"]) == 5
    assert list((tmp_path / "own").glob("*.blob"))
    assert not blobs(cache)


def test_a_cache_dir_that_cannot_be_made(tiny_llama_ov):
    with pytest.raises(BackendError, match="/proc/nowhere"):
        load(tiny_llama_ov, 1, ov_config={"CACHE_DIR": "/proc/nowhere"})


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


def test_an_architecture_that_is_not_exported(cache, tmp_path):
    from transformers import GemmaConfig

    config = GemmaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    tiny.save_model(tmp_path / "gemma", config)
    tiny.save_tokenizer(tmp_path / "gemma", eos_token="<|im_end|>")
    source = replace(models.resolve(str(tmp_path / "gemma")), reference="google/a-gemma")
    with pytest.raises(UnsupportedModel, match="cannot export google/a-gemma for OpenVINO: ") as raised:
        backends.load("openvino", source, LoadOptions(batch_size=1))
    assert raised.value.hint == "--backend torch may run it."
    assert not list((cache / "openvino").glob("[!.]*"))


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
    lines = [f'<data element_type="{kind}" shape="1" offset="0" size="{size}" />' for kind, size in constants]
    (tmp_path / "openvino_model.xml").write_text("<net>\n" + "\n".join(lines) + "\n</net>")
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
