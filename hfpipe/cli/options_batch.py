"""The options of `hfpipe batch` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfpipe.cli.options import LOADING, OUTPUT, option

InputArg = Annotated[
    str,
    typer.Argument(metavar="INPUT", help="A file of JSON lines, also gzipped; - is stdin.", show_default=False),
]
BatchSizeOpt = Annotated[
    int | None,
    option(
        "--batch-size",
        help="Requests in flight at once. Default: the backend's own.",
        panel=LOADING,
        metavar="N",
        show_default=False,
    ),
]
ResultsOpt = Annotated[
    Path | None,
    option(
        "--output",
        "-o",
        help="The file of results, which the same command again goes on with. Default: stdout.",
        panel=OUTPUT,
        metavar="FILE",
        show_default=False,
    ),
]
FormatOpt = Annotated[
    str,
    option("--format", help="hfpipe, or openai: the envelope of OpenAI's Batch API.", panel=OUTPUT, metavar="FORMAT"),
]
RestartOpt = Annotated[bool, option("--restart", help="Begin anew, and keep the old results aside.", panel=OUTPUT)]
RetryErrorsOpt = Annotated[
    bool, option("--retry-errors", help="Answer the failed records again, in their places.", panel=OUTPUT)
]
MaxErrorsOpt = Annotated[
    int | None,
    option("--max-errors", help="Stop once more have failed.", panel=OUTPUT, metavar="N", show_default=False),
]
VerifyParityOpt = Annotated[
    int | None,
    option(
        "--verify-parity",
        help="Afterwards answer N records alone and exactly, and tell how many are equal.",
        panel=OUTPUT,
        metavar="N",
        show_default=False,
    ),
]
