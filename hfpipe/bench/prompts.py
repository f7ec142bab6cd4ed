"""The user's own prompts as token ids: of a file as `hfpipe batch` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfpipe.batch.formats import HFPipeFormat
from hfpipe.batch.lines import open_input, read_lines
from hfpipe.batch.prompts import Prompts
from hfpipe.batch.records import Record
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.measure import Prompt
from hfpipe.errors import UsageError
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions

_VARIABLES = frozenset({"prompt", "question"})


def read_records(path: Path) -> list[Record]:
    """Raises UsageError for a line that is no record, and for a file without any."""
    form = HFPipeFormat(_VARIABLES)
    with open_input(path) as stream:
        records = [form.read_record(line) for line in read_lines(stream, str(path))]
    for record in records:
        if record.error:
            raise UsageError(f"Line {record.number} of {path} is no prompt: {record.error.message}")
    if not records:
        raise UsageError(f"{path} has no prompts.")
    return records


def tokenized(records: Sequence[Record], candidate: Candidate, new_tokens: int) -> list[Prompt]:
    """The records as `hfpipe batch` puts them to the model, with `new_tokens` where they do not say how many."""
    source = candidate.source
    tokenizer = load_tokenizer(source.folder, trust_remote_code=candidate.loading.trust_remote_code)
    prompts = Prompts.for_model(tokenizer, source.reference, options=GenerationOptions(max_tokens=new_tokens))
    found = []
    for record in records:
        request = prompts.request(record.id, record)
        token_ids = tokenizer.encode(request.prompt, request.add_special_tokens)
        found.append(Prompt(token_ids, request.options.max_tokens or new_tokens))
    return found
