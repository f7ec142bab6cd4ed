"""Greedy answers of one configuration, one after the other, in a process of its own (see conversion/child.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfpipe import backends
from hfpipe.backends.base import Backend
from hfpipe.sources.folder import inspect_folder
from hfpipe.types import LoadOptions, Reporter, TokenRequest


def main(arguments: dict[str, Any], reporter: Reporter) -> list[list[int]]:
    """`new_tokens` token ids after each of the `prompts`, lists of token ids, from the model in `arguments["folder"]`,
    loaded with `arguments["loading"]`, the fields of LoadOptions. `reference` is what the user calls it."""
    options = LoadOptions(**{**arguments["loading"], "batch_size": 1})
    source = inspect_folder(Path(arguments["folder"]), arguments["reference"], allow_pickle=options.allow_pickle)
    answers = []
    with backends.load(options.backend, source, options, reporter) as backend:
        for done, token_ids in enumerate(arguments["prompts"]):
            reporter.progress(f"Answering with {source.reference}", done, len(arguments["prompts"]), "steps")
            answers.append(greedy(backend, tuple(token_ids), arguments["new_tokens"]))
    return answers


def greedy(backend: Backend, token_ids: tuple[int, ...], new_tokens: int) -> list[int]:
    """The most likely tokens after `token_ids`. Raises the HFPipeError of a failure."""
    answer: list[int] = []
    for event in backend.stream([TokenRequest("0", token_ids, new_tokens)]):
        if event.error:
            raise event.error
        answer.extend(event.token_ids)
    return answer
