"""The options of `hfpipe batch` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfpipe.cli.options import LOADING, OUTPUT, option

InputArg = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="JSON lines, or a .txt file with a prompt a line; also gzipped; - is stdin.",
        show_default=False,
    ),
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
        help="Write results to FILE. Run the same command again to resume. Default: stdout.",
        panel=OUTPUT,
        metavar="FILE",
        show_default=False,
    ),
]
FormatOpt = Annotated[
    str | None,
    option(
        "--format",
        help="hfpipe, openai (Batch API) or text. Default: recognized by the first line.",
        panel=OUTPUT,
        metavar="FORMAT",
        show_default=False,
    ),
]
JsonOpt = Annotated[bool, option("--json", help="The summary as one JSON object on stdout.", panel=OUTPUT)]
RestartOpt = Annotated[
    bool, option("--restart", help="Start over, and keep the old results under another name.", panel=OUTPUT)
]
RetryErrorsOpt = Annotated[
    bool, option("--retry-errors", help="Answer failed records again, in their places.", panel=OUTPUT)
]
MaxErrorsOpt = Annotated[
    int | None,
    option("--max-errors", help="Stop once more than N have failed.", panel=OUTPUT, metavar="N", show_default=False),
]
VerifyParityOpt = Annotated[
    int | None,
    option(
        "--verify-parity",
        help="Afterwards compare N answers with an exact run of the prompt alone.",
        panel=OUTPUT,
        metavar="N",
        show_default=False,
    ),
]
