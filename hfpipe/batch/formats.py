"""What a batch reads and writes: hfpipe's own lines and plain text here, OpenAI's in openai_format.py."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hfpipe.batch import records
from hfpipe.batch.lines import Line
from hfpipe.batch.records import InvalidJSON, Record, RecordError
from hfpipe.errors import UsageError
from hfpipe.types import Completion, Usage

FORMATS = ("hfpipe", "openai", "text")
# Beside the newline, what a reader of text might take for the end of a line. JSON has all others escaped.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_BEGIN = b'{"id": "'
_AFTER_ID = b'", "text": "'
_END = b', "error": null}\n'
_PANDAS = (
    "python -c \"import pandas; pandas.read_{kind}('{name}').to_json('{stem}.jsonl', orient='records', lines=True)\""
)
_TABLES = {".csv": "csv", ".parquet": "parquet", ".xlsx": "excel", ".feather": "feather", ".orc": "orc"}


class Result(NamedTuple):
    """A result that is in the output: whose it is, and the type of its error where it is one."""

    id: str
    error: str | None = None


class Format(Protocol):
    """How lines become records, and outcomes lines. The id of a record is found again in the line of its result."""

    def read_record(self, line: Line) -> Record: ...

    def read_id(self, line: Line) -> str:
        """The id alone, quickly."""
        ...

    def result_line(self, record: Record, outcome: Completion | RecordError) -> bytes: ...

    def read_result(self, line: bytes) -> Result | None:
        """What a line of the output is the result of; None where it is no result."""
        ...

    def read_text(self, line: bytes) -> str | None:
        """The answer in a line of the output; None where it is an error, or no result."""
        ...


@dataclass(frozen=True, slots=True)
class HFPipeFormat:
    """hfpipe's own lines. `names` are the variables of the template."""

    names: frozenset[str] = frozenset()

    def read_record(self, line: Line) -> Record:
        return records.read_record(line, self.names)

    def read_id(self, line: Line) -> str:
        return records.read_id(line)

    def result_line(self, record: Record, outcome: Completion | RecordError) -> bytes:
        """`{"id", "text", "finish_reason", "usage", "error"}` as one line. The same outcome is the same bytes."""
        result: dict[str, Any]
        if isinstance(outcome, RecordError):
            error = {"type": outcome.type, "message": outcome.message}
            result = {"text": "", "finish_reason": "error", "usage": None, "error": error}
        else:
            usage = outcome.usage and counts(outcome.usage)
            result = {
                "text": outcome.text,
                "finish_reason": outcome.finish_reason,
                "usage": usage,
                "error": None,
            }
        return encode({"id": record.id, **result})

    def read_result(self, line: bytes) -> Result | None:
        """Quick for lines as `result_line` writes them: the id comes first, and the error last. It does not look
        between."""
        if line.startswith(_BEGIN) and line.endswith(_END):
            end = line.find(b'"', len(_BEGIN))
            record_id = line[len(_BEGIN) : end]
            # A backslash may be before the quote, or in its place.
            if b"\\" not in record_id and line.startswith(_AFTER_ID, end) and record_id.isascii():
                return Result(record_id.decode())
        result = read_json(line)
        if not isinstance(result, dict) or "error" not in result or not isinstance(result.get("id"), str):
            return None
        return Result(result["id"], error_type(result["error"], "type"))

    def read_text(self, line: bytes) -> str | None:
        result = read_json(line)
        if not isinstance(result, dict) or result.get("error") is not None:
            return None
        text = result.get("text")
        return text if isinstance(text, str) else None


class TextFormat(HFPipeFormat):
    """Plain text, each line a prompt, whose id is the number of the line. Results are hfpipe's own lines."""

    def read_record(self, line: Line) -> Record:
        try:
            return Record(line.number, str(line.number), prompt=line.content.decode())
        except UnicodeDecodeError as error:
            message = f"Line {line.number} is not UTF-8 text: byte {line.content[error.start]:#x} at {error.start:,}."
            return Record(line.number, str(line.number), error=RecordError.of(InvalidJSON(message)))

    def read_id(self, line: Line) -> str:
        return str(line.number)


def recognized(first: Line | None, name: str) -> str:
    """The format of an input with this first line. Raises UsageError for one that hfpipe does not read: now, and not
    once for each line after a model has been loaded."""
    path = Path(name.removesuffix(".gz"))
    content = first.content.strip() if first else b"{}"
    value = read_json(content)
    if isinstance(value, dict):
        envelope = isinstance(value.get("body"), dict) and str(value.get("url")).startswith("/v1/")
        return "openai" if envelope else "hfpipe"
    if path.suffix == ".txt":
        return "text"
    if content.startswith(b"PAR1") or path.suffix in _TABLES:
        table = _PANDAS.format(kind=_TABLES.get(path.suffix, "parquet"), name=name, stem=path.with_suffix(""))
        raise UsageError(f"{name} is a table, and hfpipe batch reads JSON lines.", hint=f"Convert it: {table}")
    if content.startswith(b"[") or content == b"{":
        each = ".[]" if content.startswith(b"[") else "."
        raise UsageError(
            f"{name} is one JSON document, and hfpipe batch reads JSON lines: one object a line.",
            hint=f"Convert it: jq -c '{each}' {name} > {path.with_suffix('.jsonl')}",
        )
    if not content.startswith(b"{"):
        raise UsageError(
            f"The first line of {name} is not a JSON object.",
            hint="For plain text with one prompt a line, use --format text (format='text').",
        )
    return "hfpipe"


def error_type(error: Any, key: str) -> str | None:
    """What an error that was written calls itself."""
    if error is None:
        return None
    return str(error.get(key)) if isinstance(error, dict) else "unknown"


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
