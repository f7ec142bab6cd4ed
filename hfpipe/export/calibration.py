"""The texts that a quantization is calibrated on: the user's own, or those that come with hfpipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hfpipe.errors import UsageError
from hfpipe.quality import texts

_KEYS = ("text", "prompt")
_JSON_LINES = (".jsonl", ".ndjson")
# About 128 tokens, and as many samples as scale estimation looks at.
_SAMPLE_CHARACTERS = 512
_MOST_SAMPLES = 128


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples of text. `name` is the file or "built-in", `digest` a sha256 of the samples."""

    name: str
    samples: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.samples).encode()).hexdigest()


def built_in() -> Calibration:
    """hfpipe's own text."""
    return Calibration("built-in", _samples(texts.calibration().values()))


def from_file(path: Path) -> Calibration:
    """The text of a file, or of the records of a .jsonl: {"text": ...} or {"prompt": ...}. Raises UsageError."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"The calibration file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The calibration file {path} is not UTF-8 text (byte {error.start:,}).") from error
    records = list(_records(path, content)) if path.suffix.lower() in _JSON_LINES else [content]
    if not any(record.strip() for record in records):
        raise UsageError(f"The calibration file {path} is empty.", hint="Some 30 kB of text like the model's own work.")
    return Calibration(str(path), _samples(records))


def _records(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            # The error's own words say "line 1".
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise UsageError(f"{path}, line {number}, is not JSON: {reason}.") from error
        texts_in = [record[key] for key in _KEYS if isinstance(record, dict) and isinstance(record.get(key), str)]
        if not texts_in:
            raise UsageError(f'{path}, line {number}, has neither "text" nor "prompt".')
        # JSON can hold half a character, which a tokenizer does not take.
        yield next((text for text in texts_in if text.strip()), "").encode(errors="replace").decode()


def _samples(documents: Iterable[str]) -> tuple[str, ...]:
    """Pieces of similar length; of many, evenly spread ones."""
    pieces = [piece for document in documents for piece in _pieces(document)]
    if len(pieces) <= _MOST_SAMPLES:
        return tuple(pieces)
    return tuple(pieces[number * len(pieces) // _MOST_SAMPLES] for number in range(_MOST_SAMPLES))


def _pieces(document: str) -> Sequence[str]:
    """A document cut at spaces or line ends, about every `_SAMPLE_CHARACTERS`."""
    pieces, rest = [], document.strip()
    while len(rest) > _SAMPLE_CHARACTERS:
        cut = max(rest.rfind(" ", 1, _SAMPLE_CHARACTERS), rest.rfind("\n", 1, _SAMPLE_CHARACTERS))
        cut = cut if cut > 0 else _SAMPLE_CHARACTERS
        pieces.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return [*pieces, rest] if rest else pieces
