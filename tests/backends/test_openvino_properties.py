"""The properties that OpenVINO is given, and the processors on which they work.

Whatever sets one beside CACHE_DIR runs in a process of its own: a crash there is an error here.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfpipe.backends.openvino import loading, tuning
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.process import run_child
from hfpipe.types import LoadOptions

MODES = (1, 4)
ACCURACY = {"EXECUTION_MODE_HINT": "ACCURACY"}


def runs(
    folder: Path,
    *options: Mapping[str, object],
    modes: Sequence[int] = MODES,
    tokens: int = 12,
    processors: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """What a backend with each of these options comes to, in SDPA and in paged mode."""
    tries = [{"batch_size": size, **one} for one in options for size in modes]
    arguments = {"folder": str(folder), "runs": tries, "processors": list(processors), "tokens": tokens}
    found: list[dict[str, Any]] = run_child(
        "tests.backends.openvino_child", arguments, what="The engine", environment=environment
    )
    return found


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


def test_a_property_that_is_wrong(tiny_llama_ov):
    found = runs(tiny_llama_ov, *({"ov_config": properties} for properties, _ in WRONG))
    for (_, message), *modes in zip(WRONG, found[::2], found[1::2], strict=True):
        for error in [HFPipeError.from_data(one["error"]) for one in modes]:
            assert isinstance(error, UsageError)
            assert re.search(message, error.message)
            assert "\n" not in error.message
            assert "/src/" not in error.message
            assert error.hint


@pytest.mark.parametrize("key", loading.EXACT)
def test_exact_is_three_properties(key):
    options = LoadOptions(exact=True, ov_config={"NUM_STREAMS": 1, key: loading.EXACT[key]})
    assert loading.properties(options, "CPU", tuning.Choice({"A": "1"})) == ({"NUM_STREAMS": 1, **loading.EXACT}, {})
    with pytest.raises(UsageError, match=f"exact sets {key}={loading.EXACT[key]}; ov_config {key}=64"):
        loading.properties(LoadOptions(exact=True, ov_config={key: 64}), "CPU")


def test_what_this_machine_was_measured_to_run_best_with(tiny_llama_ov, tmp_path, monkeypatch):
    """It is known for copies too, gives way to the user's own, and is not in the model's folder."""
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    folder, size = Path(shutil.copytree(tiny_llama_ov, tmp_path / "exported")), "DYNAMIC_QUANTIZATION_GROUP_SIZE"
    (folder / "hfpipe.json").write_text(f'{{"runtime": {{"{size}": "128"}}}}')
    for shape in ("chat", "batch"):
        tuning.keep(tiny_llama_ov, {shape: tuning.Choice({size: "64"}, 1.25)})
    found = runs(folder, {}, {"ov_config": {size: "32"}}, {"exact": True})
    why = "64 (measured on this machine: 1.25 times as fast)"
    assert [one["detail"][size] for one in found[::2]] == [why, "32", "0"]
    assert [one["detail"][size] for one in found[1::2]] == [why, "32", "0"]


@pytest.mark.parametrize(
    ("allowed", "given", "used"), [(1, {}, "1"), (2, {}, None), (1, {"INFERENCE_NUM_THREADS": "2"}, "2")]
)
def test_a_cpu_quota_bounds_the_threads(monkeypatch, allowed, given, used):
    monkeypatch.setattr(loading.machine, "affinity", lambda: 2)
    monkeypatch.setattr(loading.machine, "processors", lambda: allowed)
    found, reasons = loading.properties(LoadOptions(ov_config=given), "CPU")
    assert found.get("INFERENCE_NUM_THREADS") == used
    assert reasons.get("INFERENCE_NUM_THREADS") == ("the CPU quota" if used == "1" else None)


# Processors


def test_one_thread(tiny_llama_ov):
    """On processors with AMX, OpenVINO dies of it in bf16, where its MLP node is used."""
    found = runs(
        tiny_llama_ov,
        {"ov_config": {"INFERENCE_NUM_THREADS": 1}},
        {"ov_config": {"NUM_STREAMS": len(os.sched_getaffinity(0))}},
        {"ov_config": {"INFERENCE_NUM_THREADS": 1, **ACCURACY}},
        {"ov_config": {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}},
    )
    assert [len(one["ids"]) for one in found] == [12] * 8
    assert {one["detail"]["INFERENCE_NUM_THREADS"] for one in (*found[:2], *found[4:])} == {"1"}


def test_one_processor(tiny_llama_ov):
    processor = min(os.sched_getaffinity(0))
    found = runs(tiny_llama_ov, {}, {"device": "AUTO"}, processors=[processor])
    assert [len(one["ids"]) for one in found] == [12] * 4
    done = subprocess.run(
        [sys.executable, "-m", "hfpipe", "run", str(tiny_llama_ov), "hi", "-n", "4", "--stats"],
        preexec_fn=lambda: os.sched_setaffinity(0, [processor]),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()


# With fewer, SSE41, OpenVINO itself fails.
@pytest.mark.parametrize("instructions", ["AVX512_CORE", "AVX512_CORE_BF16", "AVX2"])
def test_processors_with_fewer_instructions(tiny_llama_ov, instructions):
    found = runs(tiny_llama_ov, {}, environment={"ONEDNN_MAX_CPU_ISA": instructions})
    assert [len(one["ids"]) for one in found] == [12] * 2


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
    """And --stats says why; what the user set is an error there. With many processors, OpenVINO need not be asked."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(loading, "_processors", lambda: f"flags: {flags}")
    monkeypatch.setattr(loading.machine, "affinity", lambda: 2)
    monkeypatch.setattr(loading.machine, "processors", lambda: 2)
    kind = SimpleNamespace(get_type_name=lambda: precision)
    values = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": kind}
    core = SimpleNamespace(
        get_property=lambda *_: ["NUM_STREAMS"], compile_model=lambda *_: SimpleNamespace(get_property=values.get)
    )
    monkeypatch.setattr(loading.ov, "Core", lambda: core)
    used, reasons = loading.properties(LoadOptions(), "CPU")
    why = f"{precision} with one thread crashes OpenVINO on this processor"
    assert used == ({"INFERENCE_PRECISION_HINT": "f32"} if needs else {})
    assert reasons == ({"INFERENCE_PRECISION_HINT": why} if needs else {})
    asked = LoadOptions(ov_config={"INFERENCE_PRECISION_HINT": precision})
    if needs:
        with pytest.raises(UsageError, match=f"INFERENCE_PRECISION_HINT={precision} cannot be used here: {why}"):
            loading.properties(asked, "CPU")
    else:
        assert loading.properties(asked, "CPU") == (asked.ov_config, {})
    assert loading.properties(LoadOptions(exact=True), "CPU") == (loading.EXACT, {})
    assert loading.properties(LoadOptions(), "GPU.0") == ({}, {})
    monkeypatch.setattr(loading.machine, "processors", lambda: 8)
    streams = LoadOptions(ov_config={"NUM_STREAMS": 8})
    assert ("INFERENCE_PRECISION_HINT" in loading.properties(streams, "CPU")[0]) == needs
    monkeypatch.delattr(core, "compile_model")
    assert loading.properties(LoadOptions(), "CPU", tuning.Choice({"KV_CACHE_PRECISION": "u8"}))[0] == {
        "KV_CACHE_PRECISION": "u8"
    }


# What a token takes


def test_a_token_takes_what_the_engine_says(tiny_llama_ov):
    """The engine takes whole blocks of 32 tokens. The scales of 8 bits weigh more where heads are as small as here."""
    per_value = (4, 2, 1.25, 4)
    options = ({"exact": True}, {}, {"ov_config": {"KV_CACHE_PRECISION": "u8"}}, {"ov_config": ACCURACY})
    for one, size in zip(runs(tiny_llama_ov, *options, modes=[2]), per_value, strict=True):
        assert one["bytes_per_token"] == 128 * size
        assert one["bytes_per_token"] == pytest.approx(one["cache_size"] / 32, rel=0 if size > 2 else 0.1)


@pytest.mark.parametrize(
    ("used", "own", "per_value"),
    [
        ({}, None, 1.25),
        ({}, "f16", 2),
        ({"KV_CACHE_PRECISION": "u8"}, "f16", 1.25),
        ({"KV_CACHE_PRECISION": "F32"}, "f16", 4),
        ({"KV_CACHE_PRECISION": "u4"}, None, 4),
        ({"KEY_CACHE_PRECISION": "bf16", "VALUE_CACHE_PRECISION": "u8"}, None, 2),
        ({"EXECUTION_MODE_HINT": "ACCURACY"}, "f16", 4),
        ({"EXECUTION_MODE_HINT": "PERFORMANCE"}, "f16", 2),
        ({"EXECUTION_MODE_HINT": "ACCURACY", "KV_CACHE_PRECISION": "u8"}, "f16", 1.25),
    ],
)
def test_the_precision_of_keys_and_values(tmp_path, used, own, per_value):
    options = f'<KV_CACHE_PRECISION value="{own}" />' if own else ""
    (tmp_path / "openvino_model.xml").write_text(f"<net>\n<rt_info>{options}</rt_info>\n</net>")
    assert loading.bytes_per_cached_value(tmp_path, used) == per_value


def test_what_was_compiled_before_does_not_change_an_answer(tiny_llama_ov, tmp_path):
    """OpenVINO itself takes a model that was compiled in f16, or in bf16 on AMX, for --exact too."""
    first = ({}, {"INFERENCE_PRECISION_HINT": "f16"}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"})
    found = runs(
        tiny_llama_ov,
        {"exact": True, "ov_config": {"CACHE_DIR": ""}},
        *({"ov_config": one} for one in first),
        {"exact": True},
        {"exact": True},
        modes=[1],
        tokens=60,
        environment={"HFPIPE_CACHE": str(tmp_path)},
    )
    assert [one["ids"] for one in found[-2:]] == [found[0]["ids"]] * 2
    # Where this processor is told to use few instructions, f16 is refused.
    compiled = [one for one in found[1:-1] if "ids" in one]
    assert len(list(tmp_path.glob("openvino-compiled/*/*.blob"))) == len(compiled) >= 3
