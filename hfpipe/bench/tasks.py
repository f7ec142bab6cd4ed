"""How many items of a file of tasks each candidate gets right, in a process of its own (`main`; see process.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hfpipe.backends import UNTUNED
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.report import Configuration
from hfpipe.errors import HFPipeError
from hfpipe.generator import open_generator
from hfpipe.models.folder import inspect_folder
from hfpipe.process import run_child
from hfpipe.quality.tasks import Item, choose, score
from hfpipe.types import GenerationOptions, LoadOptions, ModelSource, Reporter, TextRequest


def measure_tasks(
    given: Sequence[Candidate],
    items: Sequence[Item],
    reporter: Reporter,
    warn: Callable[[str], None],
    *,
    verbose: bool = False,
) -> None:
    """Add the score to the rows of the candidates, each against the first one of the same source, or the first of all
    where that is unknown. `warn` is told what could not be measured, and why."""
    firsts: dict[Path | None, Configuration] = {}
    for one in given:
        row, source = one.row, one.source
        if row.error is not None:
            continue
        reporter.stage(f"Tasks of {row.name}")
        arguments = {
            "reference": row.name,
            "folder": str(source.folder.absolute()) if isinstance(source, ModelSource) else source.reference,
            "loading": asdict(replace(one.loading, batch_size=1)),
            "items": [asdict(item) for item in items],
        }
        what = f"Answering the tasks with {row.name}"
        try:
            answers = run_child(__name__, arguments, what=what, reporter=reporter, verbose=verbose, environment=UNTUNED)
        except HFPipeError as error:
            warn(f"The tasks of {row.name} could not be measured: {error.message}")
            continue
        first = next(iter(firsts.values()), row)
        first = firsts.setdefault(one.origin.folder, row) if one.origin else firsts.setdefault(None, first)
        row.tasks = score(items, answers, (first.name, first.tasks.correct) if first.tasks else None)
    reporter.stage(None)


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, int | str]:
    """Answers to the `items`, by their ids, of the model in `folder`, which the user calls `reference`, loaded with the
    fields of LoadOptions: places of choices, and greedy texts. A hosted model has a name for a folder."""
    options, items = LoadOptions(**arguments["loading"]), [Item(**one) for one in arguments["items"]]
    given: dict[str, int | str] = {}
    if chosen := [item for item in items if item.choices]:
        pickles = options.allow_pickle
        source = inspect_folder(Path(arguments["folder"]), arguments["reference"], allow_pickle=pickles)
        given.update(zip((item.id for item in chosen), choose(source, options, chosen, reporter), strict=True))
    asked = [item for item in items if not item.choices]
    if not asked:
        return given
    task = f"Answering with {arguments['reference']}"
    with open_generator(arguments["folder"], options, reporter) as generator:
        for done, item in enumerate(asked):
            reporter.progress(task, done, len(asked), "steps")
            request = TextRequest(item.id, item.prompt, GenerationOptions(max_tokens=item.max_tokens, temperature=0))
            (answer,) = generator.generate([request])
            if answer.error:
                raise answer.error
            given[item.id] = answer.text
    reporter.progress(task, len(asked), len(asked), "steps")
    return given
