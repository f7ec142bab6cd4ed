"""Files -> one commit of a model repository on the Hub, with huggingface_hub's own token, which is never shown.

All files are there before the commit is made: an upload that is interrupted changes nothing that others see, and the
next one sends only what is missing.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub as hf
from huggingface_hub import constants, errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hfpipe.errors import AccessDenied, DownloadError, HFPipeError, UsageError
from hfpipe.models import has_form_of_hub_id
from hfpipe.models.folder import REPORT
from hfpipe.models.hub import LOGIN, TIMEOUT_S, checked_token, forget, settings_explained
from hfpipe.types import Reporter

# What a repository may have before the first upload.
_OF_ANY = {".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}


@dataclass(frozen=True, slots=True)
class Target:
    """A repository that may be written to: the files that it has, and whether it is there and private."""

    repo: str
    exists: bool
    is_private: bool = True
    files: frozenset[str] = frozenset()

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{self.repo}"

    def as_dict(self) -> dict[str, Any]:
        return {"repo": self.repo, "url": self.url, "exists": self.exists, "private": self.is_private}


def check(repo: str) -> Target:
    """Ask the Hub for the model repository ORG/NAME, which need not exist.

    Raises UsageError for another name and for a repository that holds a model of someone else, AccessDenied without a
    token or with a wrong one, DownloadError where the Hub cannot be asked.
    """
    if repo.count("/") != 1 or not has_form_of_hub_id(repo):
        hint = "ORG is your name on the Hub or an organization's; letters, digits, '-', '_' and '.' make a name."
        raise UsageError(f"--push takes ORG/NAME, not {repo!r}.", hint=hint)
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(f"{repo} cannot be pushed: HF_HUB_OFFLINE forbids it.", hint="Unset HF_HUB_OFFLINE.")
    if not checked_token():
        raise AccessDenied(f"{repo} cannot be pushed without a token of the Hub.", hint=LOGIN)
    api = hf.HfApi()
    with _explained(repo, "Asking for"), settings_explained():
        try:
            info = api.model_info(repo, timeout=TIMEOUT_S)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError as error:
            if error.response.status_code != httpx.codes.NOT_FOUND:
                # A token that does not hold, or a way to say that there is none.
                api.whoami()
            return Target(repo, exists=False)
    files = frozenset(file.rfilename for file in info.siblings or ())
    if REPORT not in files and (others := sorted(files - _OF_ANY)):
        raise UsageError(
            f"{repo} on the Hub holds {others[0]}, which is of no export of hfpipe, and stays as it is.",
            hint="Choose another name for --push.",
        )
    return Target(repo, exists=True, is_private=bool(info.private), files=files)


def push(target: Target, files: Mapping[str, Path | bytes], message: str, reporter: Reporter) -> dict[str, Any]:
    """Commit `files` (path in the repository -> content) to `target`, which is created private where it does not exist.
    Model files of an earlier export that are none of these are removed.

    Gives the `repo`, its `url`, the hash of the `commit`, and whether it is `private`. Raises HFPipeError, also an
    AccessDenied; then nothing of the repository has changed, but that it may have been created.
    """
    old = sorted(name for name in target.files if name.startswith("openvino_") and name not in files)
    operations: list[Any] = [hf.CommitOperationAdd(name, file) for name, file in files.items()]
    operations += [hf.CommitOperationDelete(name) for name in old]
    api = hf.HfApi()
    with _explained(target.repo, "The upload to"), _quietly(reporter):
        if not target.exists:
            api.create_repo(target.repo, private=True, exist_ok=True)
        commit = api.create_commit(target.repo, operations, commit_message=message)
    return {"repo": target.repo, "url": target.url, "commit": commit.oid, "private": target.is_private}


@contextmanager
def _quietly(reporter: Reporter) -> Iterator[None]:
    """Without huggingface_hub's bars; what it warns of is noted."""
    drawn = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            yield
        for warning in caught:
            reporter.note(" ".join(str(warning.message).split()))
    finally:
        if drawn:
            enable_progress_bars()


@contextmanager
def _explained(repo: str, work: str) -> Iterator[None]:
    """What huggingface_hub raises as one line and the next step."""
    try:
        yield
    except HFPipeError as error:
        forget(error.__cause__)
        raise
    except (httpx.HTTPError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        forget(error)
        # A server may repeat what it was sent.
        shows = (token := hf.get_token()) and token in "".join(traceback.format_exception(error))
        raise _translated(repo, work, error) from (None if shows else error)


def _translated(repo: str, work: str, error: Exception) -> HFPipeError:
    # A RuntimeError only names the file.
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(repo, cause)
    if isinstance(cause, httpx.ConnectError):
        return DownloadError(f"{constants.ENDPOINT} cannot be reached.", hint="Check the network, or HF_ENDPOINT.")
    reason = next(iter(str(cause).splitlines()), "") or type(cause).__name__
    hint = "Run it again: what has been sent is not sent again."
    return DownloadError(f"{work} {repo} failed: {_without_token(reason)}", hint=hint)


def _refused(repo: str, error: errors.HfHubHTTPError) -> HFPipeError:
    status, owner = error.response.status_code, repo.partition("/")[0]
    tokens = f"{constants.ENDPOINT}/settings/tokens"
    said = [_without_token(error.server_message)] if error.server_message else []
    if status == httpx.codes.UNAUTHORIZED:
        return AccessDenied("The Hub does not accept the token (status 401).", hint=f"Make one at {tokens}. {LOGIN}")
    if status == httpx.codes.FORBIDDEN:
        hint = f"Give it write access to {owner} at {tokens}."
        return AccessDenied(f"The token may not write to {repo} (status 403).", hint=hint, details=said)
    if status == httpx.codes.NOT_FOUND:
        hint = f"Check whether {owner} is a user or an organization that the token may write to."
        return AccessDenied(f"The Hub has no place {repo} (status 404).", hint=hint, details=said)
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return DownloadError(f"The Hub failed with status {status} for {repo}.", hint="Try again later.", details=said)
    message = f"The Hub refused the upload to {repo} (status {status})."
    return HFPipeError(message, hint=f"See {constants.ENDPOINT}/{repo}.", details=said)


def _without_token(text: str) -> str:
    """What a server says, which may repeat what it was sent."""
    token = hf.get_token()
    return " ".join((text.replace(token, "***") if token else text).split())
