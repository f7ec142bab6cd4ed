"""What a reference model said of each scored token, on disk: two models need never be in memory together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfpipe.quality.compare import log_softmax, row_chunks
from hfpipe.quality.windows import Window
from hfpipe.store import writing

# float16 moves a log-probability x by an e of up to |x| / 2048. A reader normalises each row again in float32: then the
# mean of e is 0, and KL to an equal model is of second order, mean e**2 / 2, some 1e-6 nats. To another model q it also
# changes by the mean of e * log(p / q), in which the signs of e cancel.
_STORED = np.dtype("<f2")
_ROWS, _DESCRIPTION = "log_probabilities.f16", "reference.json"


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference in `folder`: its windows, the width of its rows, and the dtype that the model ran in."""

    folder: Path
    windows: tuple[Window, ...]
    vocabulary: int
    dtype: str

    @property
    def tokens(self) -> int:
        """The scored tokens."""
        return scored_tokens(self.windows)

    def scored(self) -> Iterator[tuple[Window, NDArray[np.float16]]]:
        """Each window with its log-probabilities, float16 [scored tokens, vocabulary], read from disk as needed.

        They are rounded: take log_softmax of them.
        """
        rows = np.memmap(self.folder / _ROWS, _STORED, "r", shape=(self.tokens, self.vocabulary))
        start = 0
        for window in self.windows:
            end = start + len(window.targets)
            yield window, rows[start:end]
            start = end


def scored_tokens(windows: Iterable[Window]) -> int:
    return sum(len(window.targets) for window in windows)


def write_reference(
    folder: Path, windows: Sequence[Window], logits: Iterable[NDArray[Any]], *, dtype: str
) -> Reference:
    """Write the reference into an existing folder: for each window the logits, floats [scored tokens, vocabulary].

    Raises HFPipeError where the disk is full.
    """
    vocabulary = 0
    # Written as a file: a full disk would kill a process that writes into mapped memory.
    with writing(folder), (folder / _ROWS).open("wb") as file:
        for one in logits:
            vocabulary = one.shape[1]
            for rows in row_chunks(*one.shape):
                file.write(log_softmax(one[rows]).astype(_STORED).data)
        file.flush()
        description = {"windows": [asdict(window) for window in windows], "vocabulary": vocabulary, "dtype": dtype}
        (folder / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
    return Reference(folder, tuple(windows), vocabulary, dtype)


def read_reference(folder: Path) -> Reference:
    """The reference that `write_reference` left in `folder`."""
    description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    windows = [Window(**window | {"token_ids": tuple(window["token_ids"])}) for window in description["windows"]]
    return Reference(folder, tuple(windows), description["vocabulary"], description["dtype"])
