"""Models of the Hugging Face Hub, through huggingface_hub: its cache, token, endpoint and offline setting hold, unless
a model is asked for with others (HubAccess).

What is to be fetched is decided over the list of files. A model that is complete in the cache costs one small request,
and none offline. huggingface_hub 1.21 starts a cut file anew in the next run: here what came of a weight file stays
beside its blob, and the next request asks for the rest.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

import httpx
import huggingface_hub as hf
from huggingface_hub import constants, errors
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, tqdm  # type: ignore[attr-defined]

from hfpipe.errors import AccessDenied, DownloadError, HFPipeError, ModelError, ModelNotFound, UnsupportedModel, nearest
from hfpipe.models import known_names
from hfpipe.models.folder import choose, inspect_cached, inspect_folder
from hfpipe.store import lock, require_space, writing
from hfpipe.types import HubAccess, ModelSource, Reporter

TIMEOUT_S = 10.0
_RETRIES, _PAUSE_S = 3, 1.0
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."
_GIVEN = "token in model_kwargs"
_CERTIFICATES, _PROXIES = ("SSL_CERT_FILE", "SSL_CERT_DIR"), ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class _NoBar(tqdm):
    """The reporter shows what is downloaded. huggingface_hub's own settings are those of the user's program."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]


class _Meter:
    """Bytes of one download over all of its files: as much of a tqdm as huggingface_hub uses for one file."""

    def __init__(self, reporter: Reporter, task: str, total: int) -> None:
        self.reporter, self._task, self._total, self._done = reporter, task, total, 0

    def update(self, count: float | None = 1) -> None:
        self._done += int(count or 0)
        self.reporter.progress(self._task, min(self._done, self._total), self._total)


@dataclass(frozen=True, slots=True)
class _Repository:
    """One revision of a model, and how it is asked for."""

    reference: str
    revision: str | None
    access: HubAccess

    @property
    def cache(self) -> Path:
        return self.access.cache_dir or Path(constants.HF_HUB_CACHE)

    @property
    def variable(self) -> str:
        """What says where the cache is."""
        return "cache_dir" if self.access.cache_dir else "HF_HOME"

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.reference.replace('/', '--')}"

    @property
    def asked(self) -> dict[str, Any]:
        """For downloads of huggingface_hub."""
        return {"token": self.access.token, "cache_dir": self.access.cache_dir}


def resolve(
    reference: str, revision: str | None, allow_pickle: bool, reporter: Reporter, access: HubAccess
) -> ModelSource:
    """The Hub model `reference`, downloaded where the cache lacks it; its revision is the commit's hash."""
    repo = _Repository(reference, revision, access)
    with writing(repo.cache, variable=repo.variable):
        try:
            info = _info(repo)
        except (httpx.HTTPError, errors.OfflineModeIsEnabled, DownloadError) as error:
            return _from_cache(repo, allow_pickle, reporter, error)
        try:
            folder = _fetch(repo, info, allow_pickle, reporter)
        except errors.HfHubHTTPError as error:
            raise _translated(repo, error) from error
        except (httpx.HTTPError, OSError) as error:
            if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError):
                raise
            forget(error)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            hint = "Run it again to go on where it stopped."
            raise DownloadError(f"The download of {reference} was cut off: {reason}", hint=hint) from error
    return inspect_cached(folder, reference, folder.name, allow_pickle, remove=folder.parents[1])


def checked_token(given: str | Literal[False] | None = None) -> str:
    """The token that is sent, empty where there is none. Raises DownloadError for one that no header can hold."""
    token = (hf.get_token() if given is None else given) or ""
    if not (token.isascii() and token.isprintable()):
        where = "HF_TOKEN" if os.environ.get("HF_TOKEN") else constants.HF_TOKEN_PATH
        message = f"The {_GIVEN if given else f'token in {where}'} has characters that no token has."
        raise DownloadError(message, hint=f"Correct it, or leave it out. {LOGIN}" if given else LOGIN)
    return token


def _info(repo: _Repository) -> hf.ModelInfo:
    given = repo.access.token
    if constants.HF_HUB_OFFLINE or repo.access.local_files_only:
        raise errors.OfflineModeIsEnabled()
    checked_token(given)
    with settings_explained():
        return hf.HfApi(token=given).model_info(
            repo.reference, revision=repo.revision, files_metadata=True, timeout=TIMEOUT_S
        )


@contextmanager
def settings_explained() -> Iterator[None]:
    """What is raised while the Hub is asked for something as a DownloadError, where it is the settings of this machine,
    or an answer of someone else. An httpx.HTTPError stays as it is."""
    try:
        yield
    except httpx.HTTPError:
        raise
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        hint = "Check HF_ENDPOINT, and whether a proxy wants you to log in first."
        raise DownloadError(f"What {constants.ENDPOINT} answered is not a Hub's answer.", hint=hint) from error
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        suspects = _CERTIFICATES if isinstance(error, OSError) else _PROXIES
        names = [name for name, value in os.environ.items() if value and name.upper() in suspects]
        # What is said of an address may show a proxy's password.
        reason = f" ({error})" if isinstance(error, (ImportError, OSError)) else ""
        message = f"{constants.ENDPOINT} cannot be asked with {', '.join(names) or 'these settings'} as set{reason}."
        hint = "Correct or unset it. The address of a proxy is http://HOST:PORT."
        raise DownloadError(message, hint=hint) from error


def _fetch(repo: _Repository, info: hf.ModelInfo, allow_pickle: bool, reporter: Reporter) -> Path:
    reference = repo.reference
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = choose(sizes, reference, allow_pickle=allow_pickle)
    folder = _cached(repo)
    if folder and folder.name == info.sha and all((folder / name).exists() for name in wanted):
        return folder
    snapshot = repo.folder / "snapshots" / str(info.sha)
    missing = [name for name in wanted if not (snapshot / name).exists()]
    task, total = f"Downloading {reference}", sum(sizes[name] for name in missing)
    require_space(repo.cache, total, "The download", variable=repo.variable)
    meter = _Meter(reporter, task, total)
    for name in missing:
        # One at a time and in the main thread, where Ctrl-C stops it at once.
        if name.endswith((".safetensors", ".bin")):
            _fetch_weights(repo, name, str(info.sha), meter)
    # What exists is not fetched again: this brings the small files, links the weights and remembers the revision.
    revision, asked = repo.revision, repo.asked
    folder = Path(hf.snapshot_download(reference, revision=revision, allow_patterns=wanted, tqdm_class=_NoBar, **asked))
    reporter.progress(task, total, total)
    return folder


def _cached(repo: _Repository) -> Path | None:
    try:
        return Path(hf.snapshot_download(repo.reference, revision=repo.revision, local_files_only=True, **repo.asked))
    except errors.LocalEntryNotFoundError:
        return None


def _fetch_weights(repo: _Repository, name: str, commit: str, meter: _Meter) -> None:
    """Have the blob of one file in the cache. Raises httpx.HTTPError, and leaves what has come, where it is cut."""
    reference, access = repo.reference, repo.access
    metadata = hf.get_hf_file_metadata(hf.hf_hub_url(reference, name, revision=commit), token=access.token)
    has_xet = not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None
    if metadata.etag is None or (metadata.xet_file_data is not None and has_xet):
        # Xet is faster, and keeps what has come in a cache of its own.
        asked = {**repo.asked, "tqdm_class": lambda **_: nullcontext(meter)}
        try:
            hf.hf_hub_download(reference, name, revision=commit, **asked)
        except RuntimeError as error:
            # What hf_xet raises for a network that fails.
            raise httpx.NetworkError(str(error)) from error
        return
    blob = repo.folder / "blobs" / metadata.etag
    # The lock that huggingface_hub takes for this blob.
    locked = repo.cache / ".locks" / repo.folder.name / f"{metadata.etag}.lock"
    for folder in (blob.parent, locked.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with lock(locked, wait=f"Waiting for another download of {reference}.", reporter=meter.reporter):
        if not blob.exists():
            _complete(blob, metadata.location, metadata.size, access, meter)


def _complete(blob: Path, url: str, size: int | None, access: HubAccess, meter: _Meter) -> None:
    partial = blob.with_name(f"{blob.name}.hfpipe.incomplete")
    with partial.open("ab") as file:
        meter.update(file.tell())
        left = _RETRIES
        while size is None or file.tell() < size:
            before = file.tell()
            try:
                _append(file, url, access, meter)
                break
            except httpx.TransportError:
                left = _RETRIES if file.tell() > before else left - 1
                if left <= 0:
                    raise
                time.sleep(_PAUSE_S)
        if size not in (None, file.tell()):
            partial.unlink()
            raise httpx.RemoteProtocolError(f"{url} is not of the {size} bytes that were announced")
    partial.replace(blob)


def _append(file: IO[bytes], url: str, access: HubAccess, meter: _Meter) -> None:
    headers = httpx.Headers({**build_hf_headers(token=access.token), "Accept-Encoding": "identity"})
    if urlsplit(url).netloc != urlsplit(constants.ENDPOINT).netloc:
        # The token goes to the Hub alone, not to the store that it redirects to.
        headers.pop("Authorization", None)
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    with hf.get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            meter.update(-file.tell())
            file.seek(0)
            file.truncate()
        # Blocks as they come: a size given here would hold back, and lose at a cut, what is less than one block.
        for block in response.iter_bytes():
            file.write(block)
            meter.update(len(block))


def _from_cache(repo: _Repository, allow_pickle: bool, reporter: Reporter, error: Exception) -> ModelSource:
    """What the cache holds, where the Hub did not answer or refused; its error where the cache cannot help."""
    refused = _translated(repo, error)
    folder = None if isinstance(error, errors.RevisionNotFoundError) else _cached(repo)
    if folder is None:
        raise refused from error
    try:
        source = inspect_folder(folder, repo.reference, folder.name, allow_pickle)
    except UnsupportedModel:
        raise
    except ModelError as incomplete:
        raise type(refused)(f"{refused.message} The cache holds only a part of it.", hint=refused.hint) from incomplete
    if not isinstance(error, errors.OfflineModeIsEnabled):
        reason = error.message if isinstance(error, HFPipeError) else f"The Hub did not give {repo.reference}."
        reporter.note(f"{reason.removesuffix('.')}: using the copy in the cache.")
    return source


def forget(error: BaseException | None) -> None:
    """Clear the variables of the frames that raised `error`: headers are among them, and some tools show them all."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _translated(repo: _Repository, error: Exception) -> HFPipeError:
    """huggingface_hub's words as one line and the next step."""
    forget(error)
    reference, revision, access = repo.reference, repo.revision, repo.access
    page, known = f"{constants.ENDPOINT}/{reference}", nearest(reference, known_names(repo.cache))
    cache = f"the cache {access.cache_dir}" if access.cache_dir else "the cache"
    if isinstance(error, HFPipeError):
        return error
    if isinstance(error, errors.GatedRepoError):
        hint = f"Accept them at {page}. {LOGIN}"
        return AccessDenied(f"{reference} is gated: its authors ask you to accept their terms.", hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{reference} has no revision {revision!r}.", hint=f"See {page}/branches")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 404:
            return ModelNotFound(f"The Hub has no model {reference}.", hint=known or "Check the name.")
        if status in {401, 403}:
            # The Hub says 401 for what does not exist too, so as not to give private names away.
            hint = f"Check the name and the {_GIVEN}." if access.token else f"Check the name and HF_TOKEN. {LOGIN}"
            message = f"The Hub does not let you read {reference} (status {status}): it is private, or does not exist."
            return AccessDenied(message, hint=known or hint)
        return DownloadError(f"The Hub failed with status {status} for {reference}.", hint="Try again later.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        setting, undo = ("local_files_only", "Leave out") if access.local_files_only else ("HF_HUB_OFFLINE", "Unset")
        message = f"{reference} is not in {cache}, and {setting} forbids asking the Hub."
        return DownloadError(message, hint=known or f"{undo} {setting}, or name a folder.")
    message = f"{constants.ENDPOINT} cannot be reached, and {reference} is not in {cache}."
    without = "Without a Hub: a folder, or smollm2 (downloaded once, from the package index)."
    return DownloadError(message, hint=known or f"Check the network, or HF_ENDPOINT. {without}")
