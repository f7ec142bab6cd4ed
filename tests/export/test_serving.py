"""An exported folder serves other programs as it is: with exact settings they give hfpipe's own greedy tokens."""

import json

import openvino as ov
import pytest

import hfpipe
from hfpipe.process import run_child
from tests import tiny
from tests.backends.running import answers, load
from tests.backends.test_exact import ids_of, requests_for
from tests.conftest import once

# In each, the projections of queries, keys and values are one (hfpipe/backends/openvino/fusion.py).
FORMATS = ["fp32", "int8", "int4"]
PROMPTS = [tiny.SENTENCES[0], "What is EEG?", "x"]
TOKENS = 24


@pytest.fixture(scope="session")
def served(tiny_llama):
    """By format the folder, and by program its answers."""

    def export(folder):
        asked = {"model": str(tiny_llama), "formats": FORMATS, "prompts": PROMPTS, "tokens": TOKENS}
        folder.mkdir()
        found = run_child("tests.serving_child", {**asked, "folder": str(folder)}, what="The exports")
        (folder / "found.json").write_text(json.dumps(found))

    folder = once("served", export)
    found = json.loads((folder / "found.json").read_text())
    return {form: {"folder": folder / form, **found[form]} for form in FORMATS}


@pytest.mark.parametrize("form", FORMATS)
def test_other_programs_give_the_same_greedy_tokens(served, form):
    folder = served[form]["folder"]
    prompts = ids_of(folder, PROMPTS)
    with load("openvino", folder, exact=True, batch_size=1) as backend:
        ours = answers(backend, requests_for(prompts, TOKENS, frozenset({tiny.END_OF_TEXT})))
    expected = [ours[str(number)] for number in range(len(PROMPTS))]
    assert min(len(set(ids)) for ids in expected) > TOKENS // 3, "an answer without variety shows little"
    assert served[form]["optimum"] == expected
    assert served[form]["genai"] == expected


@pytest.mark.parametrize("form", FORMATS)
def test_text_in_and_text_out(served, form):
    """As a user of openvino_genai writes it, with the folder's own tokenizer."""
    with hfpipe.load(str(served[form]["folder"]), exact=True, max_tokens=TOKENS, temperature=0, template="raw") as llm:
        assert [llm.invoke(prompt) for prompt in PROMPTS] == served[form]["texts"]


def test_the_exports_are_fused(served):
    """Of two layers, each has products for queries, keys and values together, output, gate and up together, and down;
    one more is the head."""
    model = ov.Core().read_model(served["fp32"]["folder"] / "openvino_model.xml")
    weighted = [
        node
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and not node.input_value(1).get_partial_shape().is_dynamic
    ]
    assert len(weighted) == 2 * 4 + 1
