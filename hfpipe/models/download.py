"""Download one weight file of a Hub model into huggingface_hub's cache, so that a cut costs only what was not written.

huggingface_hub 1.21 starts a cut file anew in the next run. Here the bytes stay beside the blob and the next request
asks for the rest. Files behind Xet go its own, faster way where hf_xet is installed and HF_HUB_DISABLE_XET is not set.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from hfpipe.types import Reporter

_SUFFIXES = (".safetensors", ".bin")
_RETRIES = 3
_PAUSE_S = 1.0


def is_weights(name: str) -> bool:
    """Whether a file is fetched here, one at a time and in the main thread, where Ctrl-C stops it at once."""
    return name.endswith(_SUFFIXES)


class Meter:
    """Bytes of one download over all of its files. A total of None is not known."""

    def __init__(self, reporter: Reporter, task: str, total: int | None) -> None:
        self.total = total
        self._reporter, self._task, self._done = reporter, task, 0

    def add(self, count: int) -> None:
        """Count bytes; a negative count takes back what a server made us start anew."""
        self._done += count
        shown = self._done if self.total is None else min(self._done, self.total)
        self._reporter.progress(self._task, shown, self.total)

    def finish(self) -> None:
        """The small files are not counted one by one."""
        total = self._done if self.total is None else self.total
        self._reporter.progress(self._task, total, total)


def fetch_weights(reference: str, name: str, commit: str, meter: Meter) -> None:
    """Have the blob of one file in the cache. Raises httpx.HTTPError, and leaves what has come, where it is cut."""
    metadata = get_hf_file_metadata(hf_hub_url(reference, name, revision=commit))
    if metadata.etag is None or (metadata.xet_file_data is not None and _has_xet()):
        _by_hub(reference, name, commit, meter)
        return
    folder = f"models--{reference.replace('/', '--')}"
    blob = Path(constants.HF_HUB_CACHE, folder, "blobs", metadata.etag)
    lock = Path(constants.HF_HUB_CACHE, ".locks", folder, f"{metadata.etag}.lock")
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    # The lock that huggingface_hub takes for this blob.
    with FileLock(lock):
        if not blob.exists():
            _complete(blob, metadata.location, _headers(metadata.location), metadata.size, meter)


def _has_xet() -> bool:
    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def _by_hub(reference: str, name: str, commit: str, meter: Meter) -> None:
    try:
        hf_hub_download(reference, name, revision=commit, tqdm_class=_bar(meter))
    except RuntimeError as error:
        # What hf_xet raises for a network that fails.
        raise httpx.NetworkError(str(error)) from error


def _headers(location: str) -> dict[str, str]:
    """The token goes to the Hub alone, not to the store that it redirects to."""
    headers: Mapping[str, str] = build_hf_headers()
    if urlsplit(location).netloc != urlsplit(constants.ENDPOINT).netloc:
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return {**headers, "Accept-Encoding": "identity"}


def _complete(blob: Path, url: str, headers: dict[str, str], size: int | None, meter: Meter) -> None:
    partial = blob.with_name(f"{blob.name}.hfpipe.incomplete")
    with partial.open("ab") as file:
        meter.add(file.tell())
        left = _RETRIES
        while size is None or file.tell() < size:
            before = file.tell()
            try:
                _append(file, url, headers, meter)
                break
            except httpx.TransportError:
                left = _RETRIES if file.tell() > before else left - 1
                if left <= 0:
                    raise
                time.sleep(_PAUSE_S)
        whole = size is None or file.tell() == size
    if not whole:
        partial.unlink()
        raise httpx.RemoteProtocolError(f"{url} is not of the {size} bytes that were announced")
    partial.replace(blob)


def _append(file: Any, url: str, headers: dict[str, str], meter: Meter) -> None:
    asked = {**headers, "Range": f"bytes={file.tell()}-"} if file.tell() else headers
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if file.tell() and response.status_code != httpx.codes.PARTIAL_CONTENT:
            meter.add(-file.tell())
            file.seek(0)
            file.truncate()
        # Blocks as they come: a size given here would hold back, and lose at a cut, what is less than one block.
        for block in response.iter_bytes():
            file.write(block)
            meter.add(len(block))


def _bar(meter: Meter) -> Any:
    """As much of a tqdm class as huggingface_hub uses for one file."""

    class Bar:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            meter.add(int(count or 0))

    return Bar
