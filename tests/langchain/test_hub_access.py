"""`token`, `cache_dir` and `local_files_only` among model_kwargs say how the Hub is asked for one model."""

import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.load import dumps

import hfpipe
from hfpipe import ChatHFPipe, HFPipe
from hfpipe.bench.candidates import flags
from hfpipe.errors import AccessDenied, DownloadError, HFPipeError, UnsupportedOption, UsageError
from hfpipe.models import resolve
from hfpipe.types import HubAccess, LoadOptions
from tests import tiny
from tests.fake_models import write_model
from tests.hub import LoopbackHub, settings
from tests.recorder import Recorder

SECRET, OF_THE_ENVIRONMENT = "hf_s3cret", "hf_environment"
ECHO: dict[str, Any] = {"backend": "echo", "template": "raw"}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "repo", vocab_size=tiny.VOCABULARY)
    tiny.save_tokenizer(folder, eos_token=tiny.SPECIAL_TOKENS[0])
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hf"


@pytest.fixture
def hub(repo: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub with gpt2, where this process has a token of its own."""
    monkeypatch.setattr("hfpipe.models.hub._PAUSE_S", 0.01)
    with LoopbackHub({"gpt2": repo}, {"org/private": (401, "RepoNotFound")}) as served:
        variables = {"HF_ENDPOINT": served.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        with settings(**variables, HF_TOKEN=OF_THE_ENVIRONMENT):
            yield served


def loaded(**model_kwargs: Any) -> HFPipe:
    return HFPipe("gpt2", model_kwargs=model_kwargs, **ECHO)


def by_id(**model_kwargs: Any) -> HFPipe:
    return HFPipe.from_model_id("gpt2", "text-generation", model_kwargs=model_kwargs, **ECHO)


def tokens(hub: LoopbackHub) -> set[str | None]:
    """Of the requests since the last call."""
    found = {request.token for request in hub.requests}
    hub.requests.clear()
    return found


# The token


@pytest.mark.parametrize("load", [loaded, by_id, lambda **kwargs: ChatHFPipe("gpt2", model_kwargs=kwargs, **ECHO)])
@pytest.mark.parametrize("name", ["token", "use_auth_token"])
def test_a_token_goes_with_every_request_of_this_load_alone(
    hub: LoopbackHub, load: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    load(**{name: f" {SECRET}\n"})
    assert {"model.safetensors", "config.json", "/api/models/gpt2"} <= set(hub.paths("GET"))
    assert tokens(hub) == {SECRET}
    load(cache_dir=tmp_path / "other")
    assert tokens(hub) == {OF_THE_ENVIRONMENT}


@pytest.mark.parametrize(
    ("value", "sent"), [(False, None), (True, OF_THE_ENVIRONMENT), (None, OF_THE_ENVIRONMENT), ("", OF_THE_ENVIRONMENT)]
)
def test_a_token_of_false_is_none_and_others_are_that_of_the_environment(
    hub: LoopbackHub, value: Any, sent: str | None
) -> None:
    loaded(token=value)
    assert tokens(hub) == {sent}
    assert pickle.loads(pickle.dumps(LoadOptions(model_kwargs={"token": value}))).hub.token is (
        False if value is False else None
    )


def test_what_was_cut_and_what_huggingface_hub_downloads_itself_have_the_token(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.cuts[:] = [1500]
    loaded(token=SECRET)
    assert [request.range for request in hub.requests if request.range] == ["bytes=1500-"]
    assert tokens(hub) == {SECRET}
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, token: SimpleNamespace(etag=None))
    loaded(token=SECRET, cache_dir=tmp_path / "other")
    assert "model.safetensors" in hub.paths("GET")
    assert tokens(hub) == {SECRET}
    assert list((tmp_path / "other").rglob("model.safetensors"))


def test_the_store_that_the_hub_redirects_to_gets_no_token(hub: LoopbackHub, repo: Path) -> None:
    with LoopbackHub({"gpt2": repo}) as store:
        hub.store = store.url
        loaded(token=SECRET)
        assert store.paths("GET") == ["model.safetensors"]
        assert tokens(store) == {None}
        assert tokens(hub) == {SECRET}


def test_nothing_that_is_shown_or_stored_has_the_token(
    hub: LoopbackHub, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    recorder = Recorder()
    llm = HFPipe("gpt2", model_kwargs={"token": SECRET}, reporter=recorder, **ECHO)
    loading: Any = llm.generator.loading
    shown = [
        llm,
        llm.bind(stop="x"),
        llm.generator,
        vars(llm.generator),
        loading,
        loading.hub,
        llm._identifying_params,
        llm.model_kwargs,
    ]
    shown += [vars(recorder), dumps(llm), json.dumps(asdict(loading)), flags(loading), llm._serialized]
    assert SECRET not in "".join(map(repr, shown)) + caplog.text
    assert loading.hub.token == SECRET
    (tmp_path / "in.jsonl").write_text('{"prompt": "a b"}\n')
    hfpipe.batch("gpt2", tmp_path / "in.jsonl", tmp_path / "out.jsonl", model_kwargs={"token": SECRET}, **ECHO)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / ".out.jsonl.hfpipe") in written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert tokens(hub) == {SECRET}


def test_no_error_and_no_traceback_shows_the_token(hub: LoopbackHub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for model, kwargs, kind in (
        ("org/private", {"token": SECRET}, AccessDenied),
        ("gpt2", {"token": f"{SECRET}\u00f6"}, DownloadError),
        ("gpt2", {"token": SECRET, "use_auth_token": f"{SECRET}2"}, UsageError),
        ("gpt2", {"token": [SECRET]}, UsageError),
        ("gpt2", {"token": SECRET, 5: 6}, UsageError),
        ("gpt2", {"token": SECRET, "cache_dir": 5}, UsageError),
        ("gpt2", {"token": SECRET, "revision": "v9"}, HFPipeError),
    ):
        for load in (HFPipe.from_model_id, HFPipe):
            with pytest.raises((kind, HFPipeError)) as raised:
                load(model, model_kwargs=kwargs, **ECHO)
            text = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + str(raised.value.hint)
            assert SECRET not in text + caplog.text


def failed(model: str, access: HubAccess) -> HFPipeError:
    """The error of a model, whose traceback begins here."""
    try:
        resolve(model, access=access)
    except HFPipeError as error:
        return error
    raise AssertionError(model)


@pytest.mark.parametrize("token", [SECRET, None])
@pytest.mark.parametrize("model", ["org/private", "gpt2"])
def test_no_traceback_with_the_values_of_all_variables_shows_a_token(
    hub: LoopbackHub, token: str | None, model: str
) -> None:
    hub.cuts[:] = [1500, 0, 0, 0]
    shown = "".join(
        traceback.TracebackException.from_exception(failed(model, HubAccess(token)), capture_locals=True).format()
    )
    assert f"reference = {model!r}" in shown
    assert SECRET not in shown
    assert OF_THE_ENVIRONMENT not in shown
    assert tokens(hub) == {token or OF_THE_ENVIRONMENT}


def test_a_token_that_does_not_help_is_what_the_error_names(hub: LoopbackHub) -> None:
    with pytest.raises(AccessDenied) as raised:
        HFPipe("org/private", model_kwargs={"token": SECRET})
    assert raised.value.hint == "Check the name and the token in model_kwargs."
    assert tokens(hub) == {SECRET}
    with pytest.raises(DownloadError, match="token in model_kwargs has characters that no token has"):
        loaded(token="hf_t\u00f6ken")
    assert tokens(hub) == set()


def test_a_pickle_has_no_token_and_loads_with_that_of_the_environment(hub: LoopbackHub, tmp_path: Path) -> None:
    kept = pickle.dumps(loaded(token=SECRET, cache_dir=tmp_path / "cache"))
    assert SECRET.encode() not in kept
    hub.requests.clear()
    again = pickle.loads(kept)
    assert again.generator.source.folder.is_relative_to(tmp_path / "cache")
    assert tokens(hub) == {OF_THE_ENVIRONMENT}


@given(st.dictionaries(st.sampled_from(["token", "use_auth_token", "dtype", "revision"]), st.just(SECRET + "\u00e9")))
def test_the_arguments_of_the_model_are_those_that_are_not_of_the_hub(given: dict[str, str]) -> None:
    options = LoadOptions(model_kwargs=given)
    assert options.model_kwargs == {key: value for key, value in given.items() if not key.endswith("token")}
    again = pickle.loads(pickle.dumps(options))
    assert (again, again.hub) == (options, HubAccess())


# The cache


def test_a_cache_dir_holds_all_of_the_model(
    hub: LoopbackHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    llm = loaded(cache_dir="cache")
    cache = tmp_path / "cache"
    snapshot = cache / "models--gpt2" / "snapshots" / hub.commit("gpt2")
    assert llm.generator.source.folder == snapshot
    weights = (snapshot / "model.safetensors").resolve()
    assert weights.parent == cache / "models--gpt2" / "blobs"
    assert (cache / ".locks" / "models--gpt2" / f"{weights.name}.lock").exists()
    assert not home.exists()
    hub.requests.clear()
    by_id(cache_dir=cache)
    assert hub.paths("GET") == ["/api/models/gpt2"]


def test_the_errors_of_a_cache_dir_name_it(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HFPipeError, match=f"Cannot write to {tmp_path}/file") as raised:
        loaded(cache_dir=tmp_path / "file")
    assert raised.value.hint == "Choose another cache_dir."
    monkeypatch.setattr("hfpipe.machine.free_disk", lambda folder: 10)
    with pytest.raises(HFPipeError, match=f"the disk of {tmp_path}/cache has 10 bytes left") as raised:
        loaded(cache_dir=tmp_path / "cache")
    assert raised.value.hint == "Free some space, or choose another cache_dir."


# Local files


def test_with_local_files_only_no_request_is_made(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for load in (loaded, by_id):
        with pytest.raises(DownloadError) as raised:
            load(local_files_only=True, cache_dir=cache, token=SECRET)
        assert raised.value.message == f"gpt2 is not in the cache {cache}, and local_files_only forbids asking the Hub."
        assert raised.value.hint == "Leave out local_files_only, or name a folder."
    assert hub.requests == []
    loaded(cache_dir=cache)
    hub.requests.clear()
    assert loaded(local_files_only=True, cache_dir=cache).invoke("a b") == "a b"
    with pytest.raises(DownloadError, match="gpt2 is not in the cache, and local_files_only forbids"):
        loaded(local_files_only=True)
    (weights,) = (cache / "models--gpt2").rglob("snapshots/*/model.safetensors")
    weights.unlink()
    with pytest.raises(DownloadError, match=r"local_files_only forbids .* The cache holds only a part of it"):
        loaded(local_files_only=True, cache_dir=cache)
    assert hub.requests == []


# What is not of the Hub


def test_for_a_local_folder_they_have_no_effect(hub: LoopbackHub, repo: Path, tmp_path: Path) -> None:
    kwargs = {"token": "hf_t\u00f6ken", "cache_dir": tmp_path / "cache", "local_files_only": True}
    assert HFPipe.from_model_id(str(repo), model_kwargs=kwargs, **ECHO).invoke("a b") == "a b"
    assert HFPipe(str(repo), model_kwargs=kwargs, **ECHO).invoke("a b") == "a b"
    assert resolve(str(repo), access=HubAccess(**kwargs)).folder == repo
    assert hub.requests == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"token": SECRET}, "token"),
        ({"token": False}, "token"),
        ({"cache_dir": "x", "local_files_only": True}, "cache_dir, local_files_only"),
    ],
)
def test_an_endpoint_refuses_them_by_name(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedOption, match=f"endpoint backend cannot honour {named} in model_kwargs") as raised:
        HFPipe("m", endpoint="http://127.0.0.1:9", model_kwargs=kwargs)
    assert "HFPIPE_ENDPOINT_TOKEN" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"token": 5}, "token in model_kwargs must be text or a boolean, not a number"),
        ({"token": "a", "use_auth_token": "b"}, "token and use_auth_token in model_kwargs exclude each other"),
        ({"cache_dir": 5}, "cache_dir in model_kwargs must be a folder, not 5"),
        ({"local_files_only": "yes"}, "local_files_only in model_kwargs must be a boolean, not 'yes'"),
    ],
)
def test_wrong_values(kwargs: dict[str, Any], said: str) -> None:
    for load in (loaded, by_id):
        with pytest.raises(UsageError, match=said):
            load(**kwargs)


def test_openvino_takes_them_though_it_has_no_arguments_of_from_pretrained(
    hub: LoopbackHub, tiny_gpt2_ov: Path, tmp_path: Path
) -> None:
    hub.repos = {"org/gpt2-ov": tiny_gpt2_ov}
    kwargs = {"token": SECRET, "cache_dir": str(tmp_path / "cache")}
    with HFPipe.from_model_id("org/gpt2-ov", backend="openvino", model_kwargs=kwargs) as llm:
        assert llm.generator.source.folder.is_relative_to(tmp_path / "cache")
        assert llm.invoke("a b", max_tokens=2)
    assert tokens(hub) == {SECRET}


def test_a_benchmark_asks_for_its_models_with_them(hub: LoopbackHub, tmp_path: Path) -> None:
    loading = LoadOptions(model_kwargs={"token": SECRET, "cache_dir": tmp_path / "cache"})
    report = hfpipe.bench("gpt2", backends=["echo"], prompt_tokens=4, new_tokens=2, repeats=1, loading=loading)
    assert [row.error for row in report.configurations] == [None]
    assert tokens(hub) == {SECRET}
    assert (tmp_path / "cache" / "models--gpt2").is_dir()
    assert SECRET not in json.dumps(asdict(report), default=str)
