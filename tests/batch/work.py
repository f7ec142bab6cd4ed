"""A batch without a model: every record is answered with what it asks."""

import json
from pathlib import Path

from hfpipe.batch.formats import Format
from hfpipe.batch.journal import Journal
from hfpipe.batch.lines import Lines, open_input
from hfpipe.types import Completion, Usage

FORM = Format(frozenset({"question"}))
RESTART = "--restart starts over, and keeps the old file under another name."
SETTINGS = {"model": "echo", "temperature": 0.5, "stop": ["\n"]}


def answer(record):
    if record.error:
        return FORM.result_line(record, Completion("", "", "error", error=record.error))
    text = record.variables.get("question", "")
    return FORM.result_line(record, Completion(record.id, text, "stop", Usage(3, len(text))))


def answered(lines):
    """What a journal is given for each of `lines`."""
    return ((line.digest, answer(FORM.read_record(line))) for line in lines)


def finished(source: Path) -> bytes:
    """The output of a run that nothing disturbs, without a journal."""
    with open_input(source) as stream:
        return b"".join(answer(FORM.read_record(line)) for line in Lines(stream))


def run(source: Path, output: Path, limit: int | None = None, **options) -> Journal:
    """Answer `limit` records more, or all that are left."""
    with open_input(source) as stream, journal(output, **options) as opened:
        for done, result in enumerate(answered(opened.resume(Lines(stream))), 1):
            opened.append(*result)
            if done == limit:
                break
    return opened


def journal(output: Path, settings=SETTINGS, **options) -> Journal:
    return Journal(output, settings, FORM, **options)


def mended(source: Path, *positions: int) -> list[bytes]:
    """New results for records that have failed."""
    with open_input(source) as stream:
        records = [FORM.read_record(line) for line in Lines(stream)]
    return [FORM.result_line(records[one], Completion("", "mended", "stop")) for one in positions]


def with_mended(source: Path, *positions: int) -> bytes:
    """The finished output with new results at some positions."""
    lines = finished(source).splitlines(keepends=True)
    for position, line in zip(positions, mended(source, *positions), strict=True):
        lines[position] = line
    return b"".join(lines)


def manifest(output: Path) -> Path:
    return output.with_name(f".{output.name}.hfpipe")


def saved(output: Path):
    """What the manifest holds, and the size of it in bytes."""
    line = manifest(output).read_bytes().partition(b"\n")[0]
    return json.loads(line), len(line) + 1


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "q.jsonl")


def write_questions(source: Path, count: int) -> Path:
    """Ids of three kinds, texts of several lengths, a line that is no JSON now and then."""
    kinds = [
        '{{"question": "{0}"}}',
        '{{"id": "é \\" {0}", "question": "{1}"}}',
        '{{"id": {0}, "question": "é{1}"}}',
        "{{",
    ]
    source.write_text("".join(kinds[i % 4].format(i, "x" * (i % 97)) + "\n" for i in range(count)), encoding="utf-8")
    return source
