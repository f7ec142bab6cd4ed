"""What one configuration says, beside the reference: in a process of its own (see process.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfpipe import backends
from hfpipe.backends.base import Backend
from hfpipe.models.folder import inspect_folder
from hfpipe.quality import compare_source, read_reference
from hfpipe.types import LoadOptions, Reporter, TokenRequest


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Compare the model in `arguments["folder"]`, loaded with `arguments["loading"]`, the fields of LoadOptions, with
    the reference in `reference_folder`, unless that is null: `scores` is Quality.as_dict().

    `answers` are the `new_tokens` most likely token ids after each of the `prompts`, lists of token ids. `reference` is
    what the user calls the model.
    """
    options = LoadOptions(**arguments["loading"])
    source = inspect_folder(Path(arguments["folder"]), arguments["reference"], allow_pickle=options.allow_pickle)
    scores = None
    if arguments["reference_folder"]:
        reference = read_reference(Path(arguments["reference_folder"]))
        scores = compare_source(source, options, reference, reporter=reporter).as_dict()
    answers, task = [], f"Answering with {source.reference}"
    with backends.load(options.backend, source, options, reporter) as backend:
        for done, token_ids in enumerate(arguments["prompts"]):
            reporter.progress(task, done, len(arguments["prompts"]), "steps")
            answers.append(greedy(backend, tuple(token_ids), arguments["new_tokens"]))
    reporter.progress(task, len(answers), len(answers), "steps")
    return {"scores": scores, "answers": answers}


def greedy(backend: Backend, token_ids: tuple[int, ...], new_tokens: int) -> list[int]:
    """The most likely tokens after `token_ids`. Raises the HFPipeError of a failure."""
    answer: list[int] = []
    for event in backend.stream([TokenRequest("0", token_ids, new_tokens)]):
        if event.error:
            raise event.error
        answer.extend(event.token_ids)
    return answer
