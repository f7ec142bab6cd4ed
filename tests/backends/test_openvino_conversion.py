"""Which models and options the exporter takes, by its own tables, before a weight is read."""

import json

import pytest

from hfpipe.backends.openvino.optimum_cli import export_command
from hfpipe.process import run_child
from hfpipe.types import ModelSource
from tests.fake_models import write_model

CANNOT = "optimum-intel cannot export the model for OpenVINO: "
UNKNOWN = "optimum-cli: unrecognized arguments: "
CODE = {"AutoConfig": "configuration_x.XConfig"}
# Model type or configuration, what follows the options of hfpipe's own, the class of the error, how it begins.
CASES = {
    "known": ("llama", [], None, ""),
    "options": ("llama", ["--pad-token-id", "3", "--disable-stateful"], None, ""),
    "too new": ("mamba", [], "UnsupportedModel", CANNOT + "for mamba it needs transformers <= "),
    "unknown to it": ("switch_transformers", [], "UnsupportedModel", CANNOT + "the architecture switch_transformers "),
    "another task": ("bert", [], "UnsupportedModel", CANNOT + "it does not export bert for text-generation-with-past "),
    "unknown to all": ("nonsense", [], "UnsupportedModel", CANNOT + "The checkpoint you are trying to load has model "),
    "no type": ({}, [], "UnsupportedModel", CANNOT + "Unrecognized model in "),
    "code of its own": ({"auto_map": CODE}, [], "UnsupportedModel", CANNOT + "The repository "),
    "an option": ("llama", ["--no-such", "3"], "UsageError", UNKNOWN + "--no-such 3."),
    "a word": ("llama", ["word"], "UsageError", UNKNOWN + "word."),
    "half an option": ("llama", ["--disable-convert"], "UsageError", UNKNOWN + "--disable-convert."),
    "no value": ("llama", ["--pad-token-id"], "UsageError", "optimum-cli: argument --pad-token-id: expected one "),
    "a wrong value": ("llama", ["--pad-token-id", "x"], "UsageError", "optimum-cli: argument --pad-token-id: invalid "),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By case: what was said."""
    folder = tmp_path_factory.mktemp("models")
    commands = []
    for number, (kind, words, _, _) in enumerate(CASES.values()):
        model = write_model(folder / str(number))
        (model / "config.json").write_text(json.dumps({"model_type": kind} if isinstance(kind, str) else kind))
        source = ModelSource("the model", model, "transformers", {}, {}, None)
        commands.append(export_command(source, folder / "out", "fp32", more=words))
    checked = run_child("tests.process_checks", {"commands": commands}, what="The checks")
    assert not (folder / "out").exists()
    return {**dict(zip(CASES, checked["said"], strict=True)), "lacking": checked["lacking"]}


def test_the_parts_of_other_packages_are_what_they_were(found):
    """Beyond the upper bounds of pyproject.toml they may be gone: then conversion.py needs another way."""
    assert len(found["lacking"]) == 4
    assert not any(found["lacking"].values()), found["lacking"]


@pytest.mark.parametrize("case", CASES)
def test_what_the_exporter_says(found, case):
    _, _, kind, begin = CASES[case]
    if kind is None:
        assert found[case] is None
        return
    assert found[case][0] == kind
    assert found[case][1].startswith(begin)
    assert "\n" not in found[case][1]


def test_the_hint_is_the_next_step(found):
    assert found["code of its own"][2].startswith("--trust-remote-code")
    assert found["too new"][2].startswith("--backend torch")
    assert found["an option"][2].startswith("`optimum-cli export openvino --help`")
