"""What stands beside an output: the settings it was made with, and the fingerprints of the input it was made from.

OUTPUT.manifest.json holds the settings. OUTPUT.manifest.digests holds 8 bytes for each result: the first of the digest
(lines.Line) of its record. An entry is written before its result, so that after a kill there is one for each; only a
power cut can leave fewer, or zeros in their place.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from hfpipe import backends
from hfpipe.batch.disk import replace_file, sync_folder
from hfpipe.errors import HFPipeError
from hfpipe.sampling import resolve_sampling, setting
from hfpipe.text.templates import PromptTemplate
from hfpipe.types import GenerationOptions, LoadOptions, ModelSource

ENTRY = 8
_LOST = bytes(ENTRY)
RESTART = "--restart starts over, and keeps the old file under another name."
_VERSION = 2
_SHORT = 80
_HASH = 12
# What a result may depend on, of the options of loading.
_OF_LOADING = ("device", "device_map", "dtype", "attn", "ov_config", "model_kwargs", "exact")


def settings_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.manifest.json")


def digests_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.manifest.digests")


def save(output: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, where they do not stand there already."""
    path, content = settings_path(output), {"version": _VERSION, "settings": settings}
    data = json.dumps(content, indent=2).encode() + b"\n"
    if not path.is_file() or path.read_bytes() != data:
        replace_file(path, data)


def used(
    source: ModelSource,
    identity: str,
    backend: str,
    template: PromptTemplate,
    options: GenerationOptions,
    loading: LoadOptions,
) -> dict[str, Any]:
    """What the results depend on, as it is used and not as it was asked for: an option that is left out is equal to
    one that says what happens without it."""
    preferred = source.generation_config
    # A record with a top_p of its own is sampled, although the others may not be: --temp 0 is then no default.
    sampling = replace(options, top_p=options.top_p or 1.0)
    return {
        "hfpipe_version": metadata.version("hfpipe"),
        "model": {"identity": identity, "reference": source.reference},
        "backend": backend,
        "engine_versions": backends.versions(backend),
        "template": template.text,
        "add_special_tokens": template.add_special_tokens,
        **{name: getattr(loading, name) for name in _OF_LOADING},
        **{field.name: setting(field.name, options, preferred).value for field in fields(GenerationOptions)},
        "seed": options.seed,
        "stop": options.stop,
        "temperature": resolve_sampling(options, preferred).temperature,
        "temperature_if_a_record_samples": resolve_sampling(sampling, preferred).temperature,
    }


def check(output: Path, settings: Mapping[str, Any]) -> None:
    """Raise an HFPipeError that names the first setting in which a run differs from the one that made `output`."""
    old, new = _load(output), json.loads(json.dumps(settings))
    for name in {**new, **old}:
        if name not in old or name not in new or _compared(old[name]) != _compared(new[name]):
            raise HFPipeError(
                f"{output} was started with a different {name} (then: {_shown(old, name)}, now: {_shown(new, name)}).",
                hint=RESTART,
            )


def _compared(value: Any) -> Any:
    """A model is the same where its files are, however it is called."""
    return value["identity"] if isinstance(value, dict) and "identity" in value else value


def _load(output: Path) -> dict[str, Any]:
    path = settings_path(output)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise HFPipeError(f"{output} stands already, without the manifest of a batch.", hint=RESTART) from error
    except (OSError, ValueError) as error:
        raise HFPipeError(f"The manifest {path} cannot be read: {error}.", hint=RESTART) from error
    settings = content.get("settings") if isinstance(content, dict) and content.get("version") == _VERSION else None
    if not isinstance(settings, dict):
        raise HFPipeError(f"{path} is not a manifest of this version of hfpipe.", hint=RESTART)
    return settings


def _shown(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "none"
    value = settings[name]
    if isinstance(value, dict) and "identity" in value:
        value = f"{value['reference']}, {value['identity'][:_HASH]}"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _SHORT else shown[: _SHORT - 1] + "…"


def read_digests(output: Path) -> Generator[bytes]:
    """The entries, b"" for one that a power cut has lost."""
    with suppress(FileNotFoundError), digests_path(output).open("rb") as file:
        while len(entry := file.read(ENTRY)) == ENTRY:
            yield entry if entry != _LOST else b""


def set_aside(output: Path) -> Path:
    """Rename `output` and what stands beside it to the first free OUTPUT.1, OUTPUT.2, ..., which is returned."""
    number = 1
    while any(path.exists() for path in _all(_numbered(output, number))):
        number += 1
    aside = _numbered(output, number)
    # The output last: one without a manifest is not touched by the next run.
    for old, new in zip(_all(output), _all(aside), strict=True):
        if old.exists():
            old.rename(new)
    sync_folder(output.parent)
    return aside


def _numbered(output: Path, number: int) -> Path:
    return output.with_name(f"{output.name}.{number}")


def _all(output: Path) -> tuple[Path, ...]:
    return settings_path(output), digests_path(output), output
