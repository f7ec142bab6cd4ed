"""Which settings of OpenVINO run a model fastest on this machine: measured once, and kept in the cache.

The best ones depend on the processor, the model and the shape of the work. On an Intel Xeon with AVX-512 BF16, for
example, OpenVINO's own bf16 reads prompts twice as fast as f32, and decodes 8-bit weights at two thirds of its speed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
from pydantic import TypeAdapter

from hfpipe import machine, store
from hfpipe.backends.base import Backend, as_backend_error
from hfpipe.errors import BackendError, HFPipeError
from hfpipe.models.folder import openvino_models
from hfpipe.types import LoadOptions, Reporter, TokenRequest

ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
# More exact than OpenVINO's own: their answers need no check.
EXACTER: tuple[dict[str, str], ...] = ({"INFERENCE_PRECISION_HINT": "f32"},)
# More weights share a scale when a product is computed in integers; OpenVINO's own choice on a CPU is 32.
_COARSER = tuple({**one, _GROUP: size} for one in ({}, *EXACTER) for size in ("64", "128"))
CANDIDATES = (*EXACTER, *_COARSER)
KEYS = frozenset(key for one in CANDIDATES for key in one)

# Tokens of a prompt and of its answer, for each shape of the work of one request at a time.
_SHAPES = {"chat": (64, 128), "long": (2048, 64)}
_LONG, BATCH = 1024, "batch"
_PROMPT_TOKENS, _NEW_TOKENS = 256, 24
_BATCH_SIZE, _BATCH_TOKENS = 64, 32
_ROUNDS, _FASTER = 3, 1.05
# Rounds of one setting that differ by more say that the machine does something else, too.
_STEADY = 1.3
# What a second model and the compiling of it take, as a multiple of its weights.
_COPIES = 4
# A larger model takes more than a first load may be slowed by.
_SMALL = 300e6
_FIRST_LOAD_S = 3.0
_KEPT = 100
# Of a model whose config.json does not say how many tokens it knows.
FEW_TOKENS = 100

Load = Callable[[Mapping[str, str]], Backend]


@dataclass(frozen=True, slots=True)
class Choice:
    """Properties, none where OpenVINO's own are best, and how many times as fast as those they were; or that measuring
    would have taken too long."""

    properties: Mapping[str, str] = field(default_factory=dict)
    speedup: float = 1.0
    is_measured: bool = True

    @property
    def why(self) -> str:
        return f"measured on this machine: {self.speedup:.2f} times as fast"


_CHOICES = TypeAdapter(dict[str, Choice])


def shape_of(options: LoadOptions) -> str:
    """The shape of the work that a model is loaded for."""
    if options.batch_size != 1:
        return BATCH
    return "long" if (options.prompt_tokens or 0) >= _LONG else "chat"


def known(folder: Path, device: str) -> dict[str, Choice]:
    """What was measured for the model in `folder`, or a copy of it, on this machine, by the shape of the work."""
    found: dict[str, Choice] = {}
    if device == "CPU":
        with suppress(OSError, ValueError, HFPipeError):
            found = _CHOICES.validate_json(_file(folder).read_bytes())
    return {shape: one for shape, one in found.items() if one.properties in ({}, *CANDIDATES)}


def chosen(folder: Path, device: str, options: LoadOptions) -> Choice | None:
    """What a model is loaded with: the settings of another run, or what was measured; None where nothing was."""
    if options.tuned is not None:
        return Choice({key: options.tuned[key] for key in KEYS & options.tuned.keys()}, is_measured=False)
    return None if options.exact else known(folder, device).get(shape_of(options))


def keep(folder: Path, choices: Mapping[str, Choice]) -> None:
    """Have these choices be used from now on where this machine loads the model in `folder`, or a copy of it."""
    # A cache that cannot be written costs speed, not the answer.
    with suppress(OSError, HFPipeError):
        file, both = _file(folder), known(folder, "CPU") | dict(choices)
        file.parent.mkdir(parents=True, exist_ok=True)
        store.replace_file(file, _CHOICES.dump_json(both))
        store.keep_newest(file.parent, _KEPT)


def forget(folder: Path) -> None:
    """Have the model in `folder`, and copies of it, run as OpenVINO itself chooses."""
    with suppress(OSError, HFPipeError):
        _file(folder).unlink()


def _file(folder: Path) -> Path:
    model = [store.digest(file.with_suffix(end)) for file in openvino_models(folder) for end in (".xml", ".bin")]
    return _place() / store.key_of(model, *processor())


def _place() -> Path:
    return store.cache_root() / "tuning"


def processor() -> tuple[object, ...]:
    """What compiled models and measured speeds depend on beside the model."""
    name = ov.Core().get_property("CPU", "FULL_DEVICE_NAME")
    return ov.__version__, name, machine.processors(), {name: os.environ.get(name) for name in ISA_VARIABLES}


def computes_in_f32() -> bool:
    """Whether OpenVINO computes in f32 on this processor by itself."""
    return bool(ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT") == ov.Type.f32)


def is_due(folder: Path, options: LoadOptions, device: str) -> bool:
    """Whether to measure as the model in `folder` is loaded, for which nothing is known: it takes 3 s at most.

    Not where the user has chosen, where OpenVINO computes in f32 anyway, where the machine is busy or short of memory,
    where the result cannot be kept, or with HFPIPE_TUNE=0. Many answers at once, and large models, take longer to
    measure: `hfpipe bench --tune` does.
    """
    files, given = openvino_models(folder), KEYS & options.ov_config.keys()
    if device != "CPU" or options.exact or given or shape_of(options) == BATCH or options.tuned is not None:
        return False
    if os.environ.get("HFPIPE_TUNE", "").lower() in ("0", "off", "false", "no"):
        return False
    size = sum(file.with_suffix(".bin").stat().st_size for file in files)
    if len(files) > 1 or size > _SMALL or size * _COPIES > machine.available_memory():
        return False
    if computes_in_f32() or os.getloadavg()[0] >= machine.processors():
        return False
    with suppress(OSError, HFPipeError):
        _place().mkdir(parents=True, exist_ok=True)
        return os.access(_place(), os.W_OK)
    return False


def at_first_load(
    folder: Path, options: LoadOptions, default: Backend, load: Load, vocabulary: int, reporter: Reporter
) -> Choice | None:
    """What is kept, once measured; None where nothing is. What fails is a note."""
    reporter.stage("Measuring settings for this machine, once")
    try:
        found = tune(
            folder,
            default,
            load,
            candidates=EXACTER,
            vocabulary=vocabulary,
            budget_s=_FIRST_LOAD_S,
            reporter=reporter,
        )
    except (HFPipeError, RuntimeError, ValueError, MemoryError) as error:
        reporter.note(f"Settings were not measured: {as_backend_error(error).message}")
        return None
    finally:
        reporter.stage(None)
    return found.get(shape_of(options))


def tune(
    folder: Path,
    default: Backend,
    load: Load,
    *,
    candidates: Sequence[Mapping[str, str]],
    vocabulary: int,
    many: bool = False,
    budget_s: float = math.inf,
    allowed: Callable[[Mapping[str, str]], bool] = lambda properties: True,
    reporter: Reporter,
) -> dict[str, Choice]:
    """Measure the `candidates`, which `load` loads, against the `default` in turn, and keep for each shape the one that
    is fastest among those `allowed`: faster than the default in each round, and by 5 % in the median.

    They answer one request at a time, or `many`. Nothing is kept where the machine is too busy to tell; what would take
    more than `budget_s` is not measured, and the default is kept. Raises HFPipeError where an engine fails.
    """
    faster: dict[str, list[Choice]] = {shape: [] for shape in ([BATCH] if many else _SHAPES)}
    total, begun = len(candidates) * _ROUNDS, time.perf_counter()
    for number, properties in enumerate(candidates):
        reporter.progress("Measuring settings", number * _ROUNDS, total, "steps")
        with load(properties) as candidate:
            # Memory and kernels are prepared by the first.
            warm_up = time.perf_counter()
            _seconds(candidate, vocabulary, many, 0)
            rounds, round_s = list[Any](), 2 * (time.perf_counter() - warm_up)
            for turn in range(1, _ROUNDS + 1):
                if time.perf_counter() - begun + (_ROUNDS + 1 - turn) * round_s > budget_s:
                    keep(folder, unmeasured := dict.fromkeys(faster, Choice(is_measured=False)))
                    return unmeasured
                rounds.append(tuple(_seconds(one, vocabulary, many, turn) for one in (default, candidate)))
                reporter.progress("Measuring settings", number * _ROUNDS + turn, total, "steps")
        for shape in faster:
            usual = [theirs[shape] for theirs, _ in rounds]
            if max(usual) > _STEADY * min(usual):
                return {}
            ratios = [theirs[shape] / ours[shape] for theirs, ours in rounds]
            fast = min(ratios) > 1 and median(ratios) >= _FASTER
            faster[shape] += [Choice(properties, round(median(ratios), 3))] if fast else []
    found = {}
    for shape, choices in faster.items():
        ranked = sorted(choices, key=lambda one: one.speedup, reverse=True)
        found[shape] = next((one for one in ranked if allowed(one.properties)), Choice())
    keep(folder, found)
    return found


def _seconds(backend: Backend, vocabulary: int, many: bool, seed: int) -> dict[str, float]:
    """What the work of each shape takes. The `seed` gives other prompts: an engine may know those it has read."""
    rng = np.random.default_rng(seed)
    count, length, new = (_BATCH_SIZE, _BATCH_TOKENS, _BATCH_TOKENS) if many else (1, _PROMPT_TOKENS, _NEW_TOKENS)
    prompts = rng.integers(vocabulary, size=(count, length)).tolist()
    moments = [time.perf_counter()]
    for event in backend.stream(TokenRequest(str(i), tuple(one), new) for i, one in enumerate(prompts)):
        if event.error:
            raise event.error
        moments += [time.perf_counter()] * len(event.token_ids)
    if len(moments) <= count * new:
        raise BackendError(f"The engine gave {len(moments) - 1} tokens of {count * new}.")
    begun, first, *_, last = moments
    if many:
        return {BATCH: last - begun}
    prefill, decode = (first - begun) / length, (last - first) / (new - 1)
    return {shape: prompt * prefill + answer * decode for shape, (prompt, answer) in _SHAPES.items()}
