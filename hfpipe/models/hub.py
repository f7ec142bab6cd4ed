"""Models of the Hugging Face Hub, through huggingface_hub: its cache, token, endpoint and offline setting hold.

What is to be fetched is decided over the list of files, before any weight is. A model that is complete in the cache
costs one small request, and none offline.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from hfpipe.errors import AccessDenied, DownloadError, HFPipeError, ModelError, ModelNotFound, UnsupportedModel
from hfpipe.models import connection, names
from hfpipe.models.download import Meter, fetch_weights, is_weights
from hfpipe.models.folder import choose, inspect_cached, inspect_folder
from hfpipe.store import require_space, writing
from hfpipe.types import ModelSource, Reporter

_TIMEOUT_S = 10.0
_AGAIN = "Run it again to go on where it stopped."
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."


class _NoBar(tqdm):
    """The reporter shows what is downloaded. huggingface_hub's own settings are those of the user's program."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]


def resolve(reference: str, revision: str | None, allow_pickle: bool, reporter: Reporter) -> ModelSource:
    """The Hub model `reference`, downloaded where the cache lacks it; its revision is the commit's hash."""
    with writing(Path(constants.HF_HUB_CACHE), variable="HF_HOME"):
        try:
            info = _info(reference, revision)
        except (httpx.HTTPError, httpx.InvalidURL, OfflineModeIsEnabled, DownloadError) as error:
            return _from_cache(reference, revision, allow_pickle, reporter, error)
        folder = _download(reference, revision, info, allow_pickle, reporter)
    return inspect_cached(folder, reference, folder.name, allow_pickle, remove=folder.parents[1])


def _info(reference: str, revision: str | None) -> ModelInfo:
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled()
    connection.check()
    return HfApi().model_info(reference, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)


def _fetch(reference: str, revision: str | None, info: ModelInfo, allow_pickle: bool, reporter: Reporter) -> Path:
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    wanted = choose(sizes, reference, allow_pickle=allow_pickle)
    folder = _cached(reference, revision)
    if folder and folder.name == info.sha and all((folder / name).exists() for name in wanted):
        return folder
    snapshot = Path(constants.HF_HUB_CACHE, f"models--{reference.replace('/', '--')}", "snapshots", str(info.sha))
    missing = [name for name in wanted if not (snapshot / name).exists()]
    lacking = [sizes[name] for name in missing]
    meter = Meter(reporter, f"Downloading {reference}", None if None in lacking else sum(filter(None, lacking)))
    require_space(Path(constants.HF_HUB_CACHE), meter.total or 0, "The download", variable="HF_HOME")
    for name in filter(is_weights, missing):
        fetch_weights(reference, name, str(info.sha), meter)
    # What stands is not fetched again: this brings the small files, links the weights and remembers the revision.
    folder = Path(snapshot_download(reference, revision=revision, allow_patterns=wanted, tqdm_class=_NoBar))
    meter.finish()
    return folder


def _download(reference: str, revision: str | None, info: ModelInfo, allow_pickle: bool, reporter: Reporter) -> Path:
    try:
        return _fetch(reference, revision, info, allow_pickle, reporter)
    except HfHubHTTPError as error:
        raise _translated(reference, revision, error) from error
    except (httpx.HTTPError, OSError) as error:
        if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DownloadError(f"The download of {reference} was cut off: {reason}", hint=_AGAIN) from error


def _cached(reference: str, revision: str | None) -> Path | None:
    try:
        return Path(snapshot_download(reference, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _from_cache(
    reference: str, revision: str | None, allow_pickle: bool, reporter: Reporter, error: Exception
) -> ModelSource:
    """What the cache holds, where the Hub did not answer or refused; its error where the cache cannot help."""
    folder = None if isinstance(error, RevisionNotFoundError) else _cached(reference, revision)
    if folder is None:
        raise _translated(reference, revision, error) from error
    try:
        source = inspect_folder(folder, reference, folder.name, allow_pickle)
    except UnsupportedModel:
        raise
    except ModelError as incomplete:
        refused = _translated(reference, revision, error)
        raise type(refused)(f"{refused.message} The cache holds only a part of it.", hint=refused.hint) from incomplete
    if not isinstance(error, OfflineModeIsEnabled):
        reason = error.message if isinstance(error, HFPipeError) else f"The Hub did not give {reference}."
        reporter.note(f"{reason.removesuffix('.')}: using the copy in the cache.")
    return source


def _translated(reference: str, revision: str | None, error: Exception) -> HFPipeError:
    """huggingface_hub's words as one line and the next step."""
    if isinstance(error, HFPipeError):
        return error
    if isinstance(error, GatedRepoError):
        return AccessDenied(
            f"{reference} is gated: its authors ask you to accept their terms.",
            hint=f"Accept them at {constants.ENDPOINT}/{reference}. {_LOGIN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(
            f"{reference} has no revision {revision!r}.", hint=f"See {constants.ENDPOINT}/{reference}/branches"
        )
    if isinstance(error, HfHubHTTPError):
        return _refusal(reference, error)
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadError(
            f"{reference} is not in the cache, and HF_HUB_OFFLINE forbids asking the Hub.",
            hint=names.hint_for(reference) or "Unset HF_HUB_OFFLINE, or name a folder.",
        )
    return DownloadError(
        f"{constants.ENDPOINT} cannot be reached, and {reference} is not in the cache.",
        hint=names.hint_for(reference) or "Check the network, or HF_ENDPOINT. Without a Hub: smollm2, or a folder.",
    )


def _refusal(reference: str, error: HfHubHTTPError) -> HFPipeError:
    status = error.response.status_code
    hint = names.hint_for(reference)
    if status == 401 and isinstance(error, RepositoryNotFoundError):
        # The Hub says 401 for what does not exist too, so as not to give private names away.
        return AccessDenied(
            f"The Hub shows no {reference} to you: it does not exist, or is private.",
            hint=hint or f"Check the name. {_LOGIN}",
        )
    if status in {401, 403}:
        return AccessDenied(f"The Hub does not let you read {reference} (status {status}).", hint=_token_hint())
    if status == 404:
        return ModelNotFound(f"The Hub has no model {reference}.", hint=hint or "Check the name.")
    return DownloadError(f"The Hub failed with status {status} for {reference}.", hint="Try again later.")


def _token_hint() -> str:
    return "Check HF_TOKEN: it may be wrong or expired." if os.environ.get("HF_TOKEN") else _LOGIN
