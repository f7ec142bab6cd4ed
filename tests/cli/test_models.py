"""`hfpipe models`: the cache, as a shell sees it."""

import json

import pytest

from hfpipe.store import build_once, lock
from tests.cli.shell import run_hfpipe


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path))
    for key, model, form in (("a", "smollm2", "transformers"), ("b", "smollm2", "int8"), ("c", "gpt\x1b2", "fp32")):
        build_once("kind", key, lambda folder: (folder / "file").write_bytes(bytes(5000)), model=model, form=form)
    return tmp_path


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
    assert (ended.code, ended.err.decode()) == (0, f"The cache holds 3 models, 15 kB, in {cache}.\n")
    last = json.loads(models(cache, "--json", "-q").out)[-1]
    assert set(last) == {"model", "format", "size", "last_used", "folder"}
    assert last["folder"] == str(cache / "kind" / "a")


def test_rm_removes_all_of_a_model(cache):
    ended = models(cache, "rm", "smollm2")
    assert ended.err.decode() == f"Removed 2 models, 10 kB, in {cache}.\n"
    assert listed(cache) == ["gpt\x1b2"]


def test_prune_keeps_to_the_limit(cache, monkeypatch):
    monkeypatch.setenv("HFPIPE_CACHE_LIMIT", "0")
    # All of them were used in the last hour.
    assert models(cache, "--prune").err.decode() == f"Removed 0 models, 0 bytes, in {cache}.\n"
    assert len(listed(cache)) == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["rm", "smollm"], 1, "Error: The cache holds no model 'smollm'.\nDid you mean 'smollm2'?\n"),
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
