"""The one hidden file beside an output: the settings it was made with, and the fingerprints of its input.

.OUTPUT.hfpipe begins with a line of JSON, the settings. After it come 8 bytes for each result: the first of the digest
(lines.Line) of its record. An entry is written before its result, so that after a kill there is one for each; only a
power cut can leave fewer, or zeros in their place. The file is also the lock of the output.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from hfpipe import backends
from hfpipe.errors import HFPipeError
from hfpipe.sampling import resolve_sampling, setting
from hfpipe.store import identity
from hfpipe.text.templates import PromptTemplate
from hfpipe.types import BackendInfo, GenerationOptions, HostedModel, LoadOptions, ModelSource

ENTRY = 8
RESTART = "--restart starts over, and keeps the old file under another name."
_LOST = bytes(ENTRY)
_VERSION = 2
_SHORT = 80
_HASH = 12
# What the values of a model on a server are called.
_OF_HOSTED = {"model url": "endpoint", "model reference": "model"}
# What a result may depend on, of the options of loading, beside what a loaded model says of itself.
_OF_INFO = ("attention", "prompt lookup")
_OF_LOADING = ("device_map", "model_kwargs", "exact")


def used(
    source: ModelSource | HostedModel,
    backend: str,
    template: PromptTemplate,
    options: GenerationOptions,
    loading: LoadOptions,
) -> dict[str, Any]:
    """What the results depend on, as it is used and not as it was asked for: an option that is left out is equal to
    one that says what happens without it."""
    where = {"identity": identity(source.folder)} if isinstance(source, ModelSource) else {"url": source.url}
    of_generation = _resolved(options, source.generation_config) if isinstance(source, ModelSource) else _sent(options)
    return {
        "hfpipe_version": metadata.version("hfpipe"),
        "model": {**where, "reference": source.reference},
        "backend": backend,
        "engine_versions": backends.versions(backend),
        "task": asdict(source.task),
        "template": template.text,
        "variables": dict(template.variables),
        "system": template.system,
        "add_special_tokens": template.add_special_tokens,
        **{name: getattr(loading, name) for name in _OF_LOADING},
        **of_generation,
    }


def _resolved(options: GenerationOptions, preferred: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a generation here."""
    # A record with a top_p of its own is sampled, although the others may not be: --temp 0 is then no default.
    sampling = replace(options, do_sample=True)
    return {
        **{field.name: setting(field.name, options, preferred) for field in fields(GenerationOptions)},
        "seed": options.seed,
        "stop": options.stop,
        "temperature": resolve_sampling(options, preferred).temperature,
        "temperature_if_a_record_samples": resolve_sampling(sampling, preferred).temperature,
    }


def _sent(options: GenerationOptions) -> dict[str, Any]:
    """Those that a server is sent; of what is left out, only it knows the default."""
    return {**asdict(options), "max_tokens": setting("max_tokens", options, {})}


def of_engine(info: BackendInfo) -> dict[str, Any]:
    """What the results depend on that only a loaded model tells: where it computes and in which numbers."""
    named = [name for name in info.detail if name.isupper() or name in _OF_INFO]
    # Without the reason in parentheses, which may change.
    engine = {name: info.detail[name].partition(" (")[0] if name.isupper() else info.detail[name] for name in named}
    return {"device": info.device, "dtype": info.dtype, "engine_settings": engine}


class Manifest:
    """The file, open and locked: while it is open and its process lives, no other run can open it.

    Raises HFPipeError where another has it, and OSError where it cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self.path = manifest_path(output)
        # Where the entries begin.
        self._start = 0
        while True:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self.descriptor)
                hint = "Wait until it has finished, or choose another file."
                raise HFPipeError(f"Another hfpipe is writing to {output}.", hint=hint) from error
            # Whoever held it may have removed it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.descriptor), self.path.stat()):
                    return
            os.close(self.descriptor)

    def close(self) -> None:
        """Let others write. A file in which nothing was written is removed."""
        if os.fstat(self.descriptor).st_size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def save(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, and have the disk hold them, where they are not there already. For an output without
        results: until it has one, nobody reads them, and a crash in between does no harm."""
        data = json.dumps({"version": _VERSION, "settings": settings}).encode() + b"\n"
        self._start = len(data)
        if os.pread(self.descriptor, len(data) + 1, 0) != data:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, data, 0)
            os.fsync(self.descriptor)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise an HFPipeError that names the first of these settings in which a run differs from the one that made the
        output."""
        old, new = self._settings(), json.loads(json.dumps(settings))
        for name in new:
            if name not in old or _compared(old[name]) != _compared(new[name]):
                then, now = old.get(name), new[name]
                if isinstance(then, dict) and isinstance(now, dict) and "identity" not in {*then, *now}:
                    key = next(key for key in {**now, **then} if then.get(key, ...) != now.get(key, ...))
                    name, then, now = f"{name} {key}", then.get(key), now.get(key)
                values = f"(then: {_shown(then)}, now: {_shown(now)})"
                different = f"was started with a different {_OF_HOSTED.get(name, name)} {values}."
                raise HFPipeError(f"{self._output} {different}", hint=RESTART)

    def _settings(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            self._start = len(file.readline())
        if settings := _saved(self.path):
            return settings
        raise HFPipeError(
            f"{self._output} cannot be resumed: this version of hfpipe has no manifest of it in {self.path.name}.",
            hint=RESTART,
        )

    def digests(self) -> Iterator[bytes]:
        """The entries, b"" for one that a power cut has lost."""
        with self.path.open("rb") as file:
            file.seek(self._start)
            while len(entry := file.read(ENTRY)) == ENTRY:
                yield entry if entry != _LOST else b""

    def put(self, position: int, digest: bytes) -> None:
        os.pwrite(self.descriptor, digest[:ENTRY], self._start + position * ENTRY)

    def cut(self, count: int) -> None:
        """Leave the first `count` entries, without half of one, which a power cut may leave: what is missing reads as
        zeros. Where there is nothing to cut, the file is not touched."""
        size = os.fstat(self.descriptor).st_size
        wanted = self._start + min(count, (size - self._start) // ENTRY) * ENTRY
        if size != wanted:
            os.ftruncate(self.descriptor, wanted)


def settings_of(output: Path) -> dict[str, Any]:
    """The settings that the results of `output` were made with; none where there are no results."""
    with suppress(OSError):
        return _saved(manifest_path(output)) or {}
    return {}


def _saved(path: Path) -> dict[str, Any] | None:
    """The settings in a manifest of this version."""
    with path.open("rb") as file, suppress(ValueError):
        match json.loads(file.readline()):
            case {"version": int(version), "settings": dict(settings)} if version == _VERSION:
                return settings
    return None


def manifest_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.hfpipe")


def _compared(value: Any) -> Any:
    """A model is the same where its files are, whatever it is called."""
    return value["identity"] if isinstance(value, dict) and "identity" in value else value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict) and "reference" in value:
        value = f"{value['reference']}, {value['identity'][:_HASH] if 'identity' in value else value['url']}"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _SHORT else shown[: _SHORT - 1] + "…"
