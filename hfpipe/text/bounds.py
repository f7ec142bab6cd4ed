"""How few tokens a text can have, known without tokenizing it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

# NFC composes at most four characters of two bytes to one of three, or nine bytes of Hangul to three.
_COMPOSED = 4


def bytes_per_token(serialized: str) -> int | None:
    """No token of the tokenizer in this tokenizer.json stands for more bytes of text, whitespace not counted.

    None where that is not certain: only a BPE that spells every byte, and drops nothing before, loses no text.
    """
    content = json.loads(serialized)
    model = content["model"]
    before = [*_steps(content["normalizer"], "normalizers"), *_steps(content["pre_tokenizer"], "pretokenizers")]
    if model["type"] != "BPE" or not all(map(_keeps, before)):
        return None
    by_letter = any(step["type"] == "ByteLevel" for step in before)
    letters = ByteLevel.alphabet() if by_letter else [f"<0x{value:02X}>" for value in range(256)]
    if not (by_letter or model.get("byte_fallback")) or not all(letter in model["vocab"] for letter in letters):
        return None
    added = (token["content"] for token in content["added_tokens"])
    longest = max(len(token.encode()) for token in (*model["vocab"], *added))
    return longest * (_COMPOSED if any(step["type"] == "NFC" for step in before) else 1)


def _steps(step: Mapping[str, Any] | None, parts: str) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[parts]:
            yield from _steps(part, parts)
    else:
        yield step


def _keeps(step: Mapping[str, Any]) -> bool:
    """Whether a step before the model keeps all of the text, or composes characters as NFC does."""
    match step:
        case {"type": "ByteLevel" | "Digits" | "Metaspace" | "NFC" | "Prepend"}:
            return True
        case {"type": "Split" | "Punctuation", "behavior": behavior}:
            return bool(behavior != "Removed")
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return len(old.encode()) <= len(new.encode())
    return False
