"""How much a model has changed: its logits against another's log-probabilities, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfpipe.errors import BackendError, UnsupportedModel

if TYPE_CHECKING:
    from hfpipe.quality.reference import Window

# Numbers that are worked on at once: little memory, which a processor's cache can hold.
_CHUNK = 2**18
# A probability of 0 in every format, and its logarithm is a number in float16.
_LOWEST = -1e4
_MOST_NATS = 700.0


@dataclass(frozen=True, slots=True)
class Change:
    """A candidate model against a reference, over the same tokens.

    `perplexity_change` is the ratio of the two perplexities less 1. `perplexity_change_error` is its standard error,
    None for a single token. With d_i = log p_reference(token i) - log p_candidate(token i), paired token by token, the
    ratio is exp(mean d), and by the delta method its standard error is exp(mean d) * std(d) / sqrt(n); tokens count as
    independent of each other. `same_top` is the share of tokens before which both hold the same next token for the
    most likely one; several equal ones of the reference all count. `mean_kl` is the mean over the tokens of
    KL(reference || candidate) = sum_v p_reference(v) * (log p_reference(v) - log p_candidate(v)), in nats.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    perplexity_change: float
    perplexity_change_error: float | None
    same_top: float
    mean_kl: float


@dataclass(frozen=True, slots=True)
class Quality(Change):
    """The change over all texts, and in `kinds` over those of each kind.

    `vocabulary` is how many token ids were compared. Where one of the models has more, which are padding, both
    distributions are those over the ids that both have.
    """

    vocabulary: int
    kinds: Mapping[str, Change] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Values of JSON, all of them finite."""
        return asdict(self)


class Comparison:
    """Takes in windows, and gives the Quality of all of them."""

    def __init__(self) -> None:
        self._scores: dict[str, list[NDArray[np.float64]]] = {}
        self._vocabulary = 0

    def add(self, window: Window, reference: NDArray[Any], logits: NDArray[Any]) -> None:
        """Compare over one window: two arrays of floats [scored tokens, vocabulary], the reference's log-probabilities
        and the candidate's logits. Neither has to be normalised.

        Raises UnsupportedModel for tokens that one of the models does not have, BackendError for logits that are no
        numbers.
        """
        width = min(reference.shape[1], logits.shape[1])
        if max(window.token_ids) >= width:
            raise UnsupportedModel(
                f"The two models cannot be compared: the text has the token {max(window.token_ids)}, "
                f"and one of them has {width} tokens."
            )
        targets = np.array(window.targets)
        parts = [
            _scores(reference[rows, :width], logits[rows, :width], targets[rows])
            for rows in row_chunks(len(targets), width)
        ]
        self._scores.setdefault(window.kind, []).extend(parts)
        self._vocabulary = width

    def quality(self) -> Quality:
        """What came out over all windows so far: at least one."""
        kinds = {kind: np.concatenate(parts, axis=1) for kind, parts in self._scores.items()}
        changes = {kind: _change(scores) for kind, scores in kinds.items()}
        whole = _change(np.concatenate(list(kinds.values()), axis=1))
        return Quality(**asdict(whole), vocabulary=self._vocabulary, kinds=changes)


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of what two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def row_chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` rows that are small enough to be worked on at once, however large a vocabulary is."""
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Log-probabilities, float32 [n, vocabulary], of logits of any float type; none is below -10,000.

    Raises BackendError where a row has none, since it holds NaN or infinity.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        result = logits.astype(np.float32)
        result -= result.max(axis=1, keepdims=True)
        total = np.exp(result).sum(axis=1, keepdims=True)
    if not np.isfinite(total).all():
        raise BackendError(
            "The model computes NaN or infinity instead of logits.", hint="Another weight format or dtype may not."
        )
    result -= np.log(total)
    np.maximum(result, np.float32(_LOWEST), out=result)
    return result


def _scores(reference: NDArray[Any], logits: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [4, n]: both models' log-probabilities of the targets, whether the tops are equal, and the KL."""
    theirs, ours = log_softmax(reference), log_softmax(logits)
    rows = np.arange(len(targets))
    same = theirs[rows, ours.argmax(axis=1)] == theirs.max(axis=1)
    kl = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    return np.stack([theirs[rows, targets], ours[rows, targets], same, kl], dtype=np.float64)


def _change(scores: NDArray[np.float64]) -> Change:
    """`scores`: float64 [4, n], as _scores gives them."""
    reference, candidate, same, kl = scores
    difference = reference - candidate
    count, mean = difference.size, _bounded(difference.mean())
    error = math.exp(mean) * float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return Change(
        tokens=count,
        perplexity=math.exp(_bounded(-candidate.mean())),
        reference_perplexity=math.exp(_bounded(-reference.mean())),
        perplexity_change=math.expm1(mean),
        perplexity_change_error=error,
        same_top=float(same.mean()),
        # Rounding can leave it a hair below 0.
        mean_kl=max(0.0, float(kl.mean())),
    )


def _bounded(nats: Any) -> float:
    """A number whose exponential is finite: JSON knows no infinity."""
    return min(float(nats), _MOST_NATS)
