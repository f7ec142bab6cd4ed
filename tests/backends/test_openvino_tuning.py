"""Which settings are kept for a machine: chosen among made timings, and measured once as a model loads."""

import os
import shutil
from types import SimpleNamespace

import pytest

from hfpipe import backends
from hfpipe.backends.openvino import decoding, tuning
from hfpipe.errors import BackendError
from hfpipe.models.folder import inspect_folder
from hfpipe.quality import tune_openvino
from hfpipe.types import LoadOptions, Silent, TokenEvent
from tests.recorder import Recorder

F32, GROUP = tuning.EXACTER[0], {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}


@pytest.fixture
def folder(tiny_llama_ov, tmp_path, monkeypatch):
    """An export, in a cache where nothing is known of it, on a processor of bf16 that has nothing else to do."""
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HFPIPE_TUNE")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(tuning, "computes_in_f32", lambda: False)
    return shutil.copytree(tiny_llama_ov, tmp_path / "export")


class Engine:
    """Of settings, by their name in `seconds`."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def chosen(monkeypatch, folder, seconds, allowed=lambda _: True):
    """What `tune` finds where the work of (chat, long) takes these seconds in each round, by the settings."""
    turns = {name: iter(times) for name, times in seconds.items()}

    def spent(engine, vocabulary, many, seed):
        chat, long = (1.0, 1.0) if engine.name != "default" and seed == 0 else next(turns[engine.name])
        return {"chat": chat, "long": long}

    monkeypatch.setattr(tuning, "_seconds", spent)
    load = lambda one: Engine("f32" if one == F32 else "group")  # noqa: E731
    candidates = [F32, GROUP][: len(seconds) - 1]
    return tuning.tune(
        folder,
        Engine("default"),
        load,
        candidates=candidates,
        vocabulary=8,
        allowed=allowed,
        reporter=Silent(),
    )


def test_a_setting_is_kept_for_the_shape_of_work_in_which_it_is_faster(folder, monkeypatch):
    found = chosen(monkeypatch, folder, {"default": [(3, 3)] * 3, "f32": [(2, 4)] * 3})
    assert found == {"chat": tuning.Choice(F32, 1.5), "long": tuning.Choice()}
    assert tuning.known(folder, "CPU") == found


@pytest.mark.parametrize(
    "times", [[(2, 3), (2, 3), (3.1, 3)], [(2.9, 3)] * 3], ids=["not in each round", "by less than 5 %"]
)
def test_what_may_be_noise_is_not_kept(folder, monkeypatch, times):
    found = chosen(monkeypatch, folder, {"default": [(3, 3)] * 3, "f32": times})
    assert found["chat"] == tuning.Choice()


def test_a_machine_that_does_something_else_is_measured_another_time(folder, monkeypatch):
    found = chosen(monkeypatch, folder, {"default": [(3, 3), (5, 3), (3, 3)], "f32": [(1, 1)] * 3})
    assert (found, tuning.known(folder, "CPU")) == ({}, {})


def test_the_fastest_that_is_allowed_is_kept(folder, monkeypatch):
    seconds = {"default": [(3, 3)] * 6, "f32": [(2, 3)] * 3, "group": [(1, 1)] * 3}
    assert chosen(monkeypatch, folder, seconds)["chat"].properties == GROUP
    assert chosen(monkeypatch, folder, seconds, lambda one: one == F32)["chat"].properties == F32


def test_what_is_known_holds_for_copies_on_this_processor_and_this_openvino(folder, tiny_llama_ov, monkeypatch):
    before = sorted(path.name for path in folder.iterdir())
    tuning.keep(folder, {"chat": tuning.Choice(F32, 1.5)})
    assert tuning.known(tiny_llama_ov, "CPU") == {"chat": tuning.Choice(F32, 1.5)}
    assert tuning.known(folder, "GPU.0") == {}
    assert sorted(path.name for path in folder.iterdir()) == before
    with monkeypatch.context() as other:
        other.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert tuning.known(folder, "CPU") == {}
    monkeypatch.setattr(tuning.ov, "__version__", "another")
    assert tuning.known(folder, "CPU") == {}


def test_a_first_load_measures_and_the_next_one_knows(folder, monkeypatch):
    """The backend that is given back runs with what was found, and says why."""
    asked = []

    def tune(folder, default, load, *, candidates, **_):
        asked.append(tuple(candidates))
        tuning.keep(folder, found := {"chat": tuning.Choice(F32, 1.5), "long": tuning.Choice()})
        return found

    monkeypatch.setattr(tuning, "tune", tune)
    source = inspect_folder(folder, "export")
    for _ in range(2):
        with backends.load("openvino", source, LoadOptions(batch_size=1)) as backend:
            said = backend.info.detail["INFERENCE_PRECISION_HINT"]
            settings = backend.info.detail["settings"]
        assert said == "f32 (measured on this machine: 1.50 times as fast)"
        assert settings == "the fastest measured here"
    with backends.load("openvino", source, LoadOptions(batch_size=1, prompt_tokens=4000)) as backend:
        assert "INFERENCE_PRECISION_HINT" not in backend.info.detail
    assert asked == [tuning.EXACTER]


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (LoadOptions(batch_size=1, exact=True), {}),
        (LoadOptions(batch_size=1, ov_config=F32), {}),
        (LoadOptions(batch_size=8), {}),
        (LoadOptions(batch_size=1), {"_SMALL": 10}),
        (LoadOptions(batch_size=1), {"computes_in_f32": lambda: True}),
        (LoadOptions(batch_size=1), {"os": SimpleNamespace(environ={}, getloadavg=lambda: (999.0, 0.0, 0.0))}),
        (LoadOptions(batch_size=1), {"os": SimpleNamespace(environ=backends.UNTUNED)}),
        (LoadOptions(batch_size=1), {"os": SimpleNamespace(environ={"HFPIPE_TUNE": "False"})}),
        (LoadOptions(batch_size=1), {"machine": SimpleNamespace(processors=lambda: 2, available_memory=lambda: 100)}),
        (LoadOptions(batch_size=1, tuned={}), {}),
    ],
    ids=[
        *("exact", "the user's own", "many answers", "a large model", "f32 anyway", "busy", "HFPIPE_TUNE=0", "false"),
        *("little memory", "another run's"),
    ],
)
def test_a_load_does_not_measure(folder, monkeypatch, options, change):
    assert tuning.is_due(folder, LoadOptions(batch_size=1), "CPU")
    for name, value in change.items():
        monkeypatch.setattr(tuning, name, value)
    assert not tuning.is_due(folder, options, "CPU")


def test_a_load_does_not_measure_what_cannot_be_kept(folder, tmp_path):
    """Each load would do it again."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tuning").touch()
    assert not tuning.is_due(folder, LoadOptions(batch_size=1), "CPU")


@pytest.mark.parametrize(
    "kept",
    [
        "{",
        "[]",
        '{"chat": {"properties": null}}',
        '{"chat": {"speedup": "x"}}',
        '{"chat": {"properties": {"NOPE": "x"}}}',
    ],
)
def test_a_file_that_is_no_choice_counts_as_none(folder, kept):
    tuning.keep(folder, {"chat": tuning.Choice(F32, 1.5)})
    tuning._file(folder).write_text(kept)
    assert tuning.known(folder, "CPU") == {}


def test_the_settings_of_another_run_take_the_place_of_what_is_known(folder):
    tuning.keep(folder, {"chat": tuning.Choice(F32, 1.5)})
    for tuned, shown in [({}, {}), ({"window": "1", **GROUP}, GROUP)]:
        options = LoadOptions(batch_size=1, tuned=tuned)
        with backends.load("openvino", inspect_folder(folder, "export"), options) as backend:
            settings = {key: text.partition(" (")[0] for key, text in backend.info.detail.items() if key.isupper()}
        assert settings == shown


def test_a_measurement_that_fails_is_a_note_and_the_model_answers(folder, monkeypatch):
    def fail(*_, **__):
        raise BackendError("no memory")

    monkeypatch.setattr(tuning, "tune", fail)
    reporter = Recorder()
    with backends.load("openvino", inspect_folder(folder, "export"), LoadOptions(batch_size=1), reporter) as backend:
        assert backend.info.detail == {"mode": "SDPA"}
    assert "Settings were not measured: no memory" in str(reporter.notes)


def test_what_would_take_too_long_is_not_measured_and_not_tried_again(folder, monkeypatch):
    monkeypatch.setattr(tuning, "_FIRST_LOAD_S", 0.0)
    with backends.load("openvino", inspect_folder(folder, "export"), LoadOptions(batch_size=1)) as backend:
        assert "settings" not in backend.info.detail
        unmeasured = tuning.Choice(is_measured=False)
        assert tuning.known(folder, "CPU") == {"chat": unmeasured, "long": unmeasured}


@pytest.mark.parametrize("many", [False, True])
def test_seconds_of_each_shape_are_measured(folder, many):
    with backends.load(
        "openvino", inspect_folder(folder, "export"), LoadOptions(batch_size=None if many else 1)
    ) as one:
        found = tuning._seconds(one, 100, many, 0)
    assert found.keys() == ({"batch"} if many else {"chat", "long"})
    assert min(found.values()) > 0


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([TokenEvent("0", (1,)), TokenEvent("0", (), "error", BackendError("no memory"))], "no memory"),
        ([TokenEvent("0", (1,), "stop")], "The engine gave 1 tokens of 24."),
    ],
)
def test_an_engine_that_fails_while_it_is_timed(events, message):
    with pytest.raises(BackendError, match=message):
        tuning._seconds(SimpleNamespace(stream=lambda _: iter(events)), 8, False, 0)


def test_bench_tunes_for_all_shapes_and_keeps_only_what_loses_nothing(folder, monkeypatch):
    """Of the real engine, with all candidates; none but f32 is allowed where each loses more than the default."""
    monkeypatch.setenv("HFPIPE_TUNE", "0")
    asked = []
    real = tuning.tune

    def tune(*arguments, allowed, many, candidates, **options):
        asked.append((many, [allowed(one) for one in candidates]))
        return real(*arguments, allowed=allowed, many=many, candidates=candidates[:1], **options)

    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr(tune_openvino, "score", lambda _, options, *__: SimpleNamespace(mean_kl=len(options.ov_config)))
    tune_openvino.main({"folder": str(folder), "reference": "export", "trust_remote_code": False}, Silent())
    assert asked == [(True, [True, False, False, False, False]), (False, [True, False, False, False, False])]
    assert decoding.tuning.known(folder, "CPU").keys() <= {"chat", "long", "batch"}
