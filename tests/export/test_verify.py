"""What a verification sees: the machine's fastest way, an engine that fails, a tokenizer that is not the source's."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from hfpipe.backends.openvino import loading
from hfpipe.backends.openvino.conversion import copy_tokenizer
from hfpipe.errors import BackendError, ConversionError
from hfpipe.export import verify
from hfpipe.export.verify import speed, tokenizer_report
from hfpipe.models.folder import inspect_folder
from hfpipe.types import Silent, TokenEvent


class Engine:
    def __init__(self, events):
        self.events = events

    def stream(self, requests):
        return iter(self.events)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([TokenEvent("speed", (), "error", BackendError("no memory"))], "no memory"),
        ([TokenEvent("speed", (1,)), TokenEvent("speed", (), "error", BackendError("later"))], "later"),
        ([TokenEvent("speed", (1,), "stop")], "The engine gave 1 tokens of 48."),
        ([], "The engine gave 0 tokens of 48."),
    ],
)
def test_an_engine_that_fails_while_it_is_timed(events, message):
    with pytest.raises(BackendError, match=message):
        speed(Engine(events), np.arange(4))


# Prompt tokens and generated tokens a second of the three candidates, in each round.
SLOW, FAST, MIXED = (100.0, 10.0), (130.0, 10.0), (200.0, 5.0)


@pytest.mark.parametrize(
    ("rounds", "divergence", "chosen"),
    [
        ([[SLOW, FAST, SLOW]] * 3, 0.1, "64"),
        ([[SLOW, FAST, (140.0, 10.0)]] * 3, 0.1, "128"),
        ([[SLOW, FAST, SLOW]] * 3, 0.2, None),
        ([[SLOW, SLOW, MIXED]] * 3, 0.1, None),
        ([[SLOW, FAST, SLOW]] * 2 + [[FAST, SLOW, SLOW]], 0.1, None),
    ],
    ids=["faster", "fastest", "worse", "slower at the other", "not in each round"],
)
def test_the_fastest_way_is_kept_for_this_machine_alone(export, tmp_path, monkeypatch, rounds, divergence, chosen):
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verify, "_speeds", lambda *_: np.array(rounds))
    monkeypatch.setattr(verify, "score", lambda *_: SimpleNamespace(mean_kl=divergence))
    before = sorted(path.name for path in export.iterdir())
    verify.tune(export, SimpleNamespace(mean_kl=0.1), SimpleNamespace(vocabulary=8), tmp_path, Silent())
    found = loading.tuned(export, "CPU")
    assert found == ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": chosen} if chosen else {})
    assert loading.tuned(export, "GPU.0") == {}
    assert sorted(path.name for path in export.iterdir()) == before
    monkeypatch.setattr(loading.ov, "__version__", "another")
    assert loading.tuned(export, "CPU") == {}


def test_speeds_are_measured_in_turn(export, tmp_path, monkeypatch):
    """Of the prompt, and of the tokens after the first."""
    monkeypatch.setattr(verify, "_ROUNDS", 1)
    found = verify._speeds(inspect_folder(export, "export"), 100, tmp_path, Silent())
    assert found.shape == (1, 3, 2)
    assert (found > 0).all()


@pytest.fixture
def export(tiny_llama_ov, tmp_path):
    return shutil.copytree(tiny_llama_ov, tmp_path / "export")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_tokenizer_is_the_sources_byte_for_byte(tiny_llama, export, tmp_path):
    """Not what transformers has made of the class that its configuration names, where the source has one."""
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    edit(source / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    edit(export / "tokenizer.json", pre_tokenizer=None)
    (export / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"The export's tokenizer gives other ids than its source's \(\w+ text\)"):
        tokenizer_report(export, source)
    copy_tokenizer(source, export)
    for name in ("tokenizer.json", "tokenizer_config.json", "additional_chat_templates/rag.jinja"):
        assert (export / name).read_bytes() == (source / name).read_bytes()
    assert not (export / "special_tokens_map.json").exists()
    assert set(tokenizer_report(export, source)) <= {"missing", "differing"}
    made = (export / "tokenizer.json").read_bytes()
    (source / "tokenizer.json").unlink()
    copy_tokenizer(source, export)
    assert (export / "tokenizer.json").read_bytes() == made
