"""What a user may write for a model -> the ModelSource it stands for, downloaded and converted where it must be."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from hfpipe import store
from hfpipe.errors import ModelError, ModelNotFound, UsageError, nearest
from hfpipe.types import HubAccess, ModelSource, Reporter, Silent

__all__ = ["known_names", "resolve"]

BUILT_IN = ("smollm2",)
PACKAGE_PREFIX = "pypi:"

_FORMS = "A model is a folder, a .gguf file, a Hub id (gpt2, org/name), pypi:PACKAGE, or smollm2."
_HUB_ID = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
# The number counts up when the conversion changes: what an older one made is then made anew.
_GGUF = "gguf-1"


def resolve(
    reference: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    reporter: Reporter | None = None,
    access: HubAccess | None = None,
) -> ModelSource:
    """The model that `reference` names, ready to be loaded from a local folder.

    A folder or file that exists wins over any other meaning. `revision` is a branch, tag or commit of a Hub model,
    and `access` how the Hub is asked for it.
    Raises ModelError, or one of its kinds, and UsageError for a revision of what has none.
    """
    # Late, since names are completed without it.
    from hfpipe.models.folder import inspect_cached, inspect_folder

    reporter = reporter or Silent()
    path = Path(os.path.expanduser(reference)).absolute()
    hides = None
    if has_form_of_hub_id(reference) and os.path.isdir(path):
        hides = f"The local folder ./{reference} hides the Hub model {reference}. Rename it, or work elsewhere."
    if revision is not None and not is_hub_id(reference):
        raise UsageError(f"{reference} has no revisions: --revision goes with a Hub id.", hint=hides)
    if reference.strip() and os.path.isdir(path):
        try:
            return inspect_folder(path, reference, allow_pickle=allow_pickle)
        except ModelError as error:
            if hides and not any((path / name).exists() for name in ("config.json", "adapter_config.json")):
                error.hint = f"{hides} {error.hint}"
            raise
    if os.path.isfile(path):
        return inspect_cached(_converted(path, reporter), reference)
    if reference in BUILT_IN or reference.startswith(PACKAGE_PREFIX):
        from hfpipe.models import pypi

        return pypi.resolve(reference, reporter, allow_pickle=allow_pickle)
    if is_hub_id(reference):
        from hfpipe.models import hub

        return hub.resolve(reference, revision, allow_pickle, reporter, access or HubAccess())
    raise _not_a_model(reference)


def is_hub_id(reference: str) -> bool:
    """Whether the Hub is to be asked: the form of an id, and nothing else that it could mean."""
    return has_form_of_hub_id(reference) and reference not in BUILT_IN and not os.path.exists(reference)


def has_form_of_hub_id(reference: str) -> bool:
    """NAME or ORG/NAME, as the Hub allows them; a name that ends in .gguf means a file."""
    if not _HUB_ID.fullmatch(reference) or reference.lower().endswith((".gguf", ".git")):
        return False
    return ".." not in reference and "--" not in reference and reference[-1] not in "-."


def known_names(cache: Path | None = None) -> list[str]:
    """Names that work without a download of the whole: the built-in ones, then the Hub models in the cache."""
    from huggingface_hub import constants

    cache = cache or Path(constants.HF_HUB_CACHE)
    entries = os.listdir(cache) if cache.is_dir() else []
    cached = (name.removeprefix("models--").replace("--", "/") for name in entries if name.startswith("models--"))
    return [*BUILT_IN, *sorted(cached)]


def _not_a_model(reference: str) -> ModelNotFound:
    if not reference.strip():
        return ModelNotFound("The name of the model is empty.", hint=_FORMS)
    name, _, revision = reference.partition("@")
    if revision and has_form_of_hub_id(name):
        return ModelNotFound(f"{reference} is not a model's name.", hint=f"Write {name}, and --revision {revision}")
    if reference.startswith(("./", "../", "/", "~")) or reference.lower().endswith(".gguf"):
        return ModelNotFound(f"There is no folder or file {reference}.", hint=nearest(reference, known_names()))
    return ModelNotFound(f"{reference!r} is neither a folder nor the name of a model.", hint=_FORMS)


def _converted(file: Path, reporter: Reporter) -> Path:
    """The transformers folder of a GGUF file, by the sha256 of its content: a copy is not converted again."""
    if file.suffix.lower() != ".gguf":
        raise ModelError(f"{file} is a file, and only .gguf files are models.", hint=_FORMS)
    try:
        digest = store.digest(file, reporter=reporter)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from error
    make = partial(convert_gguf, file, reporter=reporter)
    return store.build_once(_GGUF, digest, make, model=file.name, form="transformers", reporter=reporter)


def convert_gguf(file: Path, folder: Path, reporter: Reporter) -> None:
    """Convert a GGUF file into the empty `folder`, in a child process. Both are absolute."""
    from hfpipe.process import run_child

    reporter.note(f"Converting {file.name}: this happens once.")
    arguments = {"file": str(file), "folder": str(folder)}
    run_child("hfpipe.models.gguf_worker", arguments, what=f"The conversion of {file.name}", reporter=reporter)
