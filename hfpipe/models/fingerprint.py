"""What tells one state of a model's files from another, without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin", ".xml")
_TEXTS = (".json", ".jinja", ".model", ".py")
_LOOK = 1 << 20


def fingerprint(folder: Path) -> str:
    """A sha256 over the names of the files of a model, all of its small ones, and of its weights the sizes and the
    first and last 2**20 bytes: gigabytes would take seconds."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS + _TEXTS and path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(_content(path))
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        if path.suffix in _TEXTS or path.stat().st_size <= 2 * _LOOK:
            return file.read()
        first = file.read(_LOOK)
        file.seek(-_LOOK, 2)
        return first + file.read()
