"""The texts that come with hfpipe: some to calibrate a quantization on, others to measure a model on."""

from __future__ import annotations

from importlib.resources import files


def calibration() -> dict[str, str]:
    """What a quantization may look at, by kind (prose, code, ...)."""
    return _texts("calibration")


def held_out(share: float = 1.0) -> dict[str, str]:
    """What a model is measured on, by kind; none of it is calibrated on. With `share` the first paragraphs of each
    kind, at least that share of its characters."""
    return {kind: _beginning(text, share) for kind, text in _texts("held_out").items()}


def _beginning(text: str, share: float) -> str:
    end = text.find("\n\n", int(len(text) * share))
    return text if end < 0 else text[:end]


def _texts(name: str) -> dict[str, str]:
    folder = files("hfpipe.quality") / "corpus" / name
    found = sorted((file.name, file) for file in folder.iterdir() if file.name.endswith(".txt"))
    return {file_name.removesuffix(".txt"): file.read_text(encoding="utf-8") for file_name, file in found}
