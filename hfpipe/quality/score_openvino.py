"""An OpenVINO folder against a reference: what its export, or its quantization, has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from hfpipe.backends.openvino import loading, seq2seq, tuning
from hfpipe.errors import UnsupportedModel
from hfpipe.models.folder import openvino_models
from hfpipe.quality.compare import Quality, Reference, Window, compare, log_softmax, reported
from hfpipe.types import LoadOptions, ModelSource, Reporter


def score(source: ModelSource, options: LoadOptions, reference: Reference, reporter: Reporter) -> Quality:
    """Compare an OpenVINO folder, compiled as the backend does for these options, with the reference. openvino sends
    telemetry as it is imported, unless silence_openvino_telemetry() was called before."""
    return compare(reference, logits(source, options, reference.windows, reporter))


def logits(
    source: ModelSource, options: LoadOptions, windows: Sequence[Window], reporter: Reporter
) -> Iterator[NDArray[Any]]:
    """For each window what `_compiled` gives, of an OpenVINO folder compiled as the backend does for these options."""
    folder, device = source.folder, loading.check_device(options.device, reporter)
    with loading.readable(device, folder):
        logits_of = _compiled(folder, device, options)
        for window in reported(windows, f"Scoring {folder.name}", reporter):
            yield logits_of(window)


def check_numbers(source: ModelSource, token_ids: Sequence[int]) -> None:
    """Raise BackendError where a model computes no numbers after these tokens."""
    window = Window("", (*token_ids, 0), 1)
    if source.is_encoder_decoder:
        window = Window("", (*source.decoder_start, 0), 1, tuple(token_ids))
    with loading.readable("CPU", source.folder):
        log_softmax(_compiled(source.folder, "CPU", LoadOptions())(window))


def _compiled(folder: Path, device: str, options: LoadOptions) -> Callable[[Window], NDArray[Any]]:
    """What gives, for a window, floats [scored tokens, vocabulary]: the logits of its targets, until the next one."""
    used, _ = loading.properties(options, device, tuning.known(folder, device).get("chat"))
    if len(openvino_models(folder)) > 1:
        encoder, decoder = seq2seq.compiled(folder, device, used)

        def answer_logits(window: Window) -> NDArray[Any]:
            batch = seq2seq.Batch(encoder, decoder, [window.prompt])
            return batch.infer([window.inputs])[0, -len(window.targets) :]

        return answer_logits
    compiled = ov.Core().compile_model(folder / "openvino_model.xml", device, used)
    names = {port.any_name for port in compiled.inputs}
    request = compiled.create_infer_request()

    def logits_of(window: Window) -> NDArray[Any]:
        ids = np.array([window.inputs], dtype=np.int64)
        # All that a language model of optimum's may take, of which it has some.
        known = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        if strange := names - set(known):
            raise UnsupportedModel(f"This OpenVINO model takes {', '.join(sorted(strange))}, and cannot be measured.")
        request.reset_state()
        request.infer({name: known[name] for name in names})
        logits: NDArray[Any] = request.get_tensor("logits").data[0]
        return logits[-len(window.targets) :]

    return logits_of
