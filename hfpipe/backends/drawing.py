"""The next tokens of a batch, drawn at once: each row by its own sampling and its own random number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfpipe.types import Sampling

# Of the most likely tokens so many are looked at before all of them are: to sort a vocabulary takes 50 times as long.
_FIRST = (64, 2048)


def draw(scores: NDArray[np.float32], rows: Sequence[Sampling], numbers: Sequence[float]) -> list[int]:
    """A token for each row of logits, float32 [batch, vocabulary]: it depends on nothing else in the batch.

    `numbers` are random ones from 0 to 1, of which greedy rows use none. Order: temperature, top-k, top-p, min-p.
    """
    drawn = [0] * len(rows)
    sampled = [i for i, row in enumerate(rows) if row.temperature > 0]
    for i in set(range(len(rows))).difference(sampled):
        drawn[i] = int(scores[i].argmax())
    cut = [i for i in sampled if rows[i].top_k > 0 or rows[i].top_p < 1]
    for chosen in filter(None, (cut, [i for i in sampled if i not in cut])):
        asked = [rows[i] for i in chosen]
        tempered = scores[chosen] / _column([row.temperature for row in asked], np.float32)
        # Shares of the most likely token's probability.
        weights, ids = np.exp(tempered - tempered.max(axis=1, keepdims=True)), None
        if chosen is cut:
            weights, ids = _most_likely(weights, asked)
        weights[weights < _column([row.min_p for row in asked])] = 0
        sums = weights.cumsum(axis=1, dtype=np.float64)
        for row, place in enumerate(chosen):
            # The first whose sum is larger, or, where rounding leaves none, the last with a weight.
            wanted, largest = numbers[place] * sums[row, -1], sums[row, -1]
            at = min(sums[row].searchsorted(wanted, side="right"), sums[row].searchsorted(largest))
            drawn[place] = int(at if ids is None else ids[row, at])
    return drawn


def penalize(scores: NDArray[np.float32], tokens: Sequence[int], penalty: float) -> None:
    """Keskar et al., CTRL, 2019, section 4.1, on the logits of one row, negative ones as transformers has it."""
    seen = list(set(tokens))
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)


def _most_likely(
    weights: NDArray[np.float32], rows: Sequence[Sampling]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What top-k and then top-p leave of each row: weights, the largest first and 0 for the rest, and token ids."""
    vocabulary = weights.shape[1]
    top_k = _column([min(row.top_k or vocabulary, vocabulary) for row in rows], np.int64)
    top_p = _column([row.top_p for row in rows])
    whole = weights.sum(axis=1, keepdims=True, dtype=np.float64)
    for count in [*(count for count in _FIRST if count < vocabulary), vocabulary]:
        # Of equal ones the lower id is first, however many are looked at.
        ids = np.sort(np.argpartition(weights, vocabulary - count, axis=1)[:, vocabulary - count :], axis=1)
        found = np.take_along_axis(weights, ids, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        ids, kept = np.take_along_axis(ids, order, axis=1), np.take_along_axis(found, order, axis=1).astype(np.float64)
        last = kept[:, -1:].copy()
        # Those that equal the k-th stay.
        least = np.where(top_k <= count, np.take_along_axis(kept, top_k.clip(max=count) - 1, axis=1), 0)
        kept[kept < least] = 0
        total = np.where(least > 0, kept.sum(axis=1, keepdims=True), whole)
        kept[(kept.cumsum(axis=1) - kept >= top_p * total) & (top_p < 1)] = 0
        # Beyond the tokens that were looked at none can belong to them, also none that equals the k-th.
        smallest = np.where(top_k < vocabulary, least, np.where(kept > 0, kept, 1).min(axis=1, keepdims=True))
        if count == vocabulary or (smallest > last).all():
            break
    return kept, ids


def _column(values: Sequence[float], dtype: type = np.float64) -> NDArray[Any]:
    return np.array(values, dtype=dtype)[:, None]
