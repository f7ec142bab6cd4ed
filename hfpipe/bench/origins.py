"""The transformers models that the measured ones come from: quality is measured against them."""

from __future__ import annotations

from collections.abc import Sequence

from hfpipe.errors import UsageError
from hfpipe.export import report as reports
from hfpipe.store import identity
from hfpipe.types import ModelSource

# What an export keeps of the config.json of its source.
_KEPT = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def origin_of(source: ModelSource, found: Sequence[ModelSource], reference: ModelSource | None) -> ModelSource | None:
    """What `source` is, or was made of: one of `found`, where its hfpipe.json names that, else the reference. Another
    may be worth a download, but not unasked."""
    if source.format == "transformers":
        return source
    made = reports.read(source.folder)
    of = made["source"].get("model") if made else None
    return next((one for one in found if one.format == "transformers" and one.reference == of), reference)


def check_reference(reference: ModelSource, compared: Sequence[ModelSource]) -> list[str]:
    """What speaks against the models being made of the reference. Raises UsageError for one that cannot be."""
    if reference.format != "transformers":
        raise UsageError(f"The reference {reference.reference} is not a transformers model.")
    for source in compared:
        _check_architecture(reference, source)
    return [
        f"{source.reference} was made of another model than {reference.reference}, or of another state of it, as its "
        "hfpipe.json says: losses are against something that it does not come from."
        for source in compared
        if _is_of_another(reference, source)
    ]


def _check_architecture(reference: ModelSource, source: ModelSource) -> None:
    for key in _KEPT:
        theirs, ours = reference.config.get(key), source.config.get(key)
        if theirs is not None and ours is not None and theirs != ours:
            raise UsageError(
                f"{source.reference} was not made of {reference.reference}: its {key} is {ours}, not {theirs}.",
                hint="--reference names the transformers model that it was made of.",
            )


def _is_of_another(reference: ModelSource, source: ModelSource) -> bool:
    made = reports.read(source.folder)
    digest = made["source"].get("sha256") if made else None
    return digest is not None and digest != identity(reference.folder)
