"""`hfpipe models`: the cache, as a shell sees it."""

import json

import pytest

from hfpipe.store import build_once, lock
from tests.cli.shell import run_hfpipe


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for key, model, form in (("a", "smollm2", "transformers"), ("b", "smollm2", "int8"), ("c", "gpt\x1b2", "fp32")):
        build_once("kind", key, lambda folder: (folder / "file").write_bytes(bytes(5000)), model=model, form=form)
    return tmp_path / "cache"


def hub_model(cache, name, commit):
    """A model as huggingface_hub keeps it."""
    folder = cache.parent / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "blob").write_bytes(bytes(7000))
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").symlink_to("../../blobs/blob")
    return folder


def models(cache, *words):
    return run_hfpipe("models", *words, env={"HFPIPE_CACHE": str(cache)})


def listed(cache):
    return [one["model"] for one in json.loads(models(cache, "--json").out)]


def test_it_lists_model_format_size_and_last_use(cache):
    ended = models(cache)
    header, *rows = ended.out.decode().splitlines()
    assert header.split("  ")[0] == "MODEL"
    assert [row.split()[:4] for row in rows] == [
        [r"gpt\x1b2", "fp32", "5", "kB"],
        ["smollm2", "int8", "5", "kB"],
        ["smollm2", "transformers", "5", "kB"],
    ]
    assert (ended.code, ended.err.decode()) == (0, f"{cache} and the Hub's cache hold 3 models, 15 kB.\n")
    last = json.loads(models(cache, "--json", "-q").out)[-1]
    assert set(last) == {"model", "format", "size", "last_used", "folder"}
    assert last["folder"] == str(cache / "kind" / "a")


def test_rm_removes_all_of_a_model(cache):
    ended = models(cache, "rm", "smollm2")
    assert ended.err.decode() == "Removed 2 models, 10 kB.\n"
    assert listed(cache) == ["gpt\x1b2"]


def test_prune_keeps_to_the_limit(cache, monkeypatch):
    monkeypatch.setenv("HFPIPE_CACHE_LIMIT", "0")
    nothing = "Removed 0 models, 0 bytes.\nKept 3 models used within the last hour.\n"
    assert models(cache, "--prune").err.decode() == nothing
    monkeypatch.setenv("HFPIPE_PRUNE", "1")
    assert models(cache).err.decode() == nothing
    monkeypatch.delenv("HFPIPE_PRUNE")
    assert len(listed(cache)) == 3


def test_models_of_the_hubs_cache_are_listed_and_removed_one_by_one(cache):
    folder, copy = (hub_model(cache, name, "a" * 40) for name in ("org/name", "org/copy"))
    ended = models(cache)
    assert ["org/name", "hub", "7", "kB"] in [row.split()[:4] for row in ended.out.decode().splitlines()]
    assert ended.err.decode().endswith("hold 5 models, 29 kB.\n")
    ended = models(cache, "rm", "org/name")
    assert (ended.code, ended.err.decode()) == (0, "Removed 1 model, 7 kB.\n")
    assert not folder.exists()
    assert (copy / "snapshots" / ("a" * 40) / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["rm", "smollm"], 1, "Error: The caches hold no model 'smollm'.\nDid you mean 'smollm2'?\n"),
        (["rm"], 2, "Error: Unexpected: rm.\nhfpipe models lists, hfpipe models rm NAME removes.\n"),
        (["smollm2"], 2, "Error: Unexpected: smollm2.\nhfpipe models lists, hfpipe models rm NAME removes.\n"),
    ],
)
def test_what_is_meant_otherwise_is_said(cache, words, code, message):
    ended = models(cache, *words)
    assert (ended.code, ended.err.decode()) == (code, message)
    assert len(listed(cache)) == 3


def test_what_another_process_prepares_is_not_removed(cache):
    with lock(cache / "kind" / ".b.hfpipe-lock"):
        ended = models(cache, "rm", "smollm2")
    assert (ended.code, ended.err.splitlines()[0]) == (1, b"Error: Another hfpipe is preparing smollm2.")
    assert len(listed(cache)) == 3
