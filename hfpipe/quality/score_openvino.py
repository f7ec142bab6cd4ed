"""An OpenVINO folder against a reference: what its export, or its quantization, has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from hfpipe.backends.openvino.loading import check_device, readable
from hfpipe.backends.openvino.loading import properties as engine_properties
from hfpipe.errors import UnsupportedModel
from hfpipe.quality.compare import Comparison, Quality, log_softmax
from hfpipe.quality.reference import Reference, Window
from hfpipe.types import LoadOptions, ModelSource, Reporter, Silent


def compare(source: ModelSource, options: LoadOptions, reference: Reference, reporter: Reporter) -> Quality:
    """Compare an OpenVINO folder, compiled as the backend does for these options, with the reference."""
    device = check_device(options.device, reporter)
    with readable(device):
        used, _ = engine_properties(options, device, source.runtime if device == "CPU" else {})
    return score(source.folder, used, reference, device=device, reporter=reporter)


def score(
    folder: Path,
    properties: Mapping[str, Any],
    reference: Reference,
    *,
    device: str = "CPU",
    reporter: Reporter | None = None,
) -> Quality:
    """Compare the model in `folder`, compiled for an OpenVINO device with these properties, with the reference.

    openvino sends telemetry as it is imported, unless silence_openvino_telemetry() was called before.
    """
    reporter = reporter or Silent()
    comparison, task = Comparison(), f"Scoring {folder.name}"
    with readable(device, folder):
        used, _ = engine_properties(LoadOptions(ov_config=properties), device, {})
        model = _Model(folder, used, device)
        done = 0
        for window, log_probabilities in reference.scored():
            reporter.progress(task, done, reference.tokens, "steps")
            comparison.add(window, log_probabilities, model.logits(window))
            done += len(window.targets)
        reporter.progress(task, done, reference.tokens, "steps")
    return comparison.quality()


def check_numbers(folder: Path, token_ids: Sequence[int], *, device: str = "CPU") -> None:
    """Raise BackendError where the model in `folder` computes no numbers after these tokens."""
    with readable(device, folder):
        window = Window("", (*token_ids, 0), 1)
        log_softmax(_Model(folder, {}, device).logits(window))


class _Model:
    """A compiled model that reads one window at a time, and remembers none."""

    def __init__(self, folder: Path, properties: Mapping[str, Any], device: str) -> None:
        compiled = ov.Core().compile_model(folder / "openvino_model.xml", device, dict(properties))
        self._names = [port.any_name for port in compiled.inputs]
        self._request = compiled.create_infer_request()

    def logits(self, window: Window) -> NDArray[Any]:
        """Floats [scored tokens, vocabulary]: the logits of the window's targets, until the next window."""
        known = _inputs(window)
        if strange := set(self._names) - set(known):
            raise UnsupportedModel(f"This OpenVINO model takes {', '.join(sorted(strange))}, and cannot be measured.")
        self._request.reset_state()
        self._request.infer({name: known[name] for name in self._names})
        logits: NDArray[Any] = self._request.get_tensor("logits").data[0]
        return logits[-len(window.targets) :]


def _inputs(window: Window) -> dict[str, NDArray[Any]]:
    """All that a language model of optimum's may take, of which it has some."""
    ids = np.array([window.inputs], dtype=np.int64)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }
