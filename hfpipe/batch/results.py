"""The results of a batch as lines, and lines as what they are the results of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hfpipe.batch.records import RecordError
from hfpipe.types import Completion, Usage

# Beside the newline, what a reader of text might take for the end of a line. JSON has all others escaped.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_BEGIN = b'{"id": "'
_AFTER_ID = b'", "text": "'
_END = b', "error": null}\n'


class Standing(NamedTuple):
    """A result that is in the output: whose it is, and the word of its error where it is one."""

    id: str
    error: str | None = None


def result_line(record_id: str, outcome: Completion | RecordError) -> bytes:
    """`{"id", "text", "finish_reason", "usage", "error"}` as one line. The same outcome is the same bytes."""
    error = error_of(outcome)
    if error is not None:
        reason, text, usage = "error", "", None
    else:
        assert isinstance(outcome, Completion)
        reason, text, usage = outcome.finish_reason, outcome.text, outcome.usage
    return encode(
        {
            "id": record_id,
            "text": text,
            "finish_reason": reason,
            "usage": usage and counts(usage),
            "error": error and {"type": error.type, "message": error.message},
        }
    )


def read_result(line: bytes) -> Standing | None:
    """What `line` is the result of; None where it is no result.

    Quick for lines as `result_line` writes them: the id comes first, and the error last. It does not look between.
    """
    if line.startswith(_BEGIN) and line.endswith(_END):
        end = line.find(b'"', len(_BEGIN))
        record_id = line[len(_BEGIN) : end]
        # A backslash may be before the quote, or in its place.
        if b"\\" not in record_id and line.startswith(_AFTER_ID, end) and record_id.isascii():
            return Standing(record_id.decode())
    return _read_slowly(line)


def read_text(line: bytes) -> str | None:
    """The answer in a result; None where it is an error, or no result."""
    result = read_json(line)
    if not isinstance(result, dict) or result.get("error") is not None:
        return None
    text = result.get("text")
    return text if isinstance(text, str) else None


def _read_slowly(line: bytes) -> Standing | None:
    result = read_json(line)
    if not isinstance(result, dict) or "error" not in result or not isinstance(result.get("id"), str):
        return None
    return Standing(result["id"], word(result["error"], "type"))


def word(error: Any, key: str) -> str | None:
    """What an error that was written calls itself."""
    if error is None:
        return None
    return str(error.get(key)) if isinstance(error, dict) else "unknown"


def error_of(outcome: Completion | RecordError) -> RecordError | None:
    if isinstance(outcome, RecordError):
        return outcome
    if outcome.error is not None:
        return RecordError.of(outcome.error)
    return RecordError("engine", "The engine gave no reason.") if outcome.finish_reason == "error" else None


def counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def encode(value: Mapping[str, Any]) -> bytes:
    """One line of JSON in UTF-8. Half characters, which have no UTF-8, are escaped as JSON escapes them."""
    text = json.dumps(value, ensure_ascii=False)
    text = _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def read_json(line: bytes) -> Any:
    """The value of a line; None where it is no JSON."""
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
