"""The names of models: what form a reference has, and which names are known on this machine. Reads folders at most."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hfpipe.errors import nearest

BUILT_IN = ("smollm2",)
PACKAGE_PREFIX = "pypi:"

_HUB_ID = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REPOSITORY = "models--"


def is_packaged(reference: str) -> bool:
    """Whether the model comes in a wheel: pypi:PACKAGE, or a built-in name."""
    return reference in BUILT_IN or reference.startswith(PACKAGE_PREFIX)


def is_hub_id(reference: str, path: str) -> bool:
    """Whether the Hub is to be asked: the form of an id, and nothing else that it could mean."""
    return has_form_of_hub_id(reference) and reference not in BUILT_IN and not os.path.exists(path)


def has_form_of_hub_id(reference: str) -> bool:
    """NAME or ORG/NAME, as the Hub allows them; a name that ends in .gguf means a file."""
    if not _HUB_ID.fullmatch(reference) or reference.lower().endswith((".gguf", ".git")):
        return False
    return ".." not in reference and "--" not in reference and reference[-1] not in "-."


def looks_like_path(reference: str) -> bool:
    """Whether the user meant a place on this machine."""
    starts = ("./", "../", "/", "~", f".{os.sep}", f"..{os.sep}", os.sep)
    return reference in {".", ".."} or reference.startswith(starts) or reference.lower().endswith(".gguf")


def hub_cache() -> Path:
    """The folder of huggingface_hub's cache, found as it finds it, without importing it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable):
            return Path(os.path.expandvars(os.path.expanduser(chosen)))
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(os.path.expanduser(home)), "hub")


def known_names() -> list[str]:
    """Names that work without a download of the whole: the built-in ones, then the Hub models in the cache."""
    try:
        entries = os.listdir(hub_cache())
    except OSError:
        entries = []
    cached = (entry[len(_REPOSITORY) :].replace("--", "/") for entry in entries if entry.startswith(_REPOSITORY))
    return [*BUILT_IN, *sorted(cached)]


def hint_for(reference: str) -> str | None:
    """The known name that was probably meant."""
    return nearest(reference, known_names())
