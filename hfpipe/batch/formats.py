"""What a batch reads and writes: hfpipe's own lines here, OpenAI's in openai_format.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hfpipe.batch import records, results
from hfpipe.batch.lines import Line
from hfpipe.batch.records import Record, RecordError
from hfpipe.batch.results import Standing
from hfpipe.types import Completion


class Format(Protocol):
    """How lines become records, and outcomes lines. The id of a record is found again in the line of its result."""

    def read_record(self, line: Line) -> Record: ...

    def read_id(self, line: Line) -> str:
        """The id alone, quickly."""
        ...

    def result_line(self, record: Record, outcome: Completion | RecordError) -> bytes: ...

    def read_result(self, line: bytes) -> Standing | None:
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
        return results.result_line(record.id, outcome)

    def read_result(self, line: bytes) -> Standing | None:
        return results.read_result(line)

    def read_text(self, line: bytes) -> str | None:
        return results.read_text(line)
