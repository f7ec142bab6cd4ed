"""The user's own prompts as token ids: of a file as `hfpipe batch` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfpipe.batch.formats import HFPipeFormat
from hfpipe.batch.lines import open_input, read_lines
from hfpipe.batch.prompts import Prompts
from hfpipe.batch.records import Record
from hfpipe.bench.candidates import check_room
from hfpipe.bench.measure import Prompt
from hfpipe.errors import ContextLengthError, HFPipeError, MissingVariable, UsageError
from hfpipe.generator import prompt_template
from hfpipe.text.tokenizer import Tokenizer, load_tokenizer
from hfpipe.types import GenerationOptions, ModelSource

_VARIABLES = frozenset({"prompt", "question"})
# What helps here: other commands have options for it.
_HINTS = {
    MissingVariable: 'A line has a "prompt", a "question", or "messages".',
    ContextLengthError: "--new-tokens, or max_tokens of the line, makes its answer shorter.",
}


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


def tokenized(
    records: Sequence[Record], source: ModelSource, new_tokens: int, *, trust_remote_code: bool = False
) -> list[Prompt]:
    """The records as `hfpipe batch` puts them to the model, with `new_tokens` where they do not say how many.

    Raises HFPipeError, with its line, for one that does not fit the model's template or context.
    """
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    prompts = Prompts(prompt_template(tokenizer, source.reference), GenerationOptions(max_tokens=new_tokens))
    return [_tokenized(record, source, prompts, tokenizer) for record in records]


def _tokenized(record: Record, source: ModelSource, prompts: Prompts, tokenizer: Tokenizer) -> Prompt:
    try:
        request = prompts.request(record.id, record)
        prompt = Prompt(tokenizer.encode(request.prompt, request.add_special_tokens), request.options.max_tokens or 0)
        check_room(source, len(prompt.token_ids) + prompt.new_tokens)
    except HFPipeError as error:
        hint = next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), None)
        raise type(error)(f"Line {record.number} of the prompts: {error.message}", hint=hint) from error
    return prompt
