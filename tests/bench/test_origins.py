"""What an OpenVINO folder is compared with."""

from dataclasses import replace

import pytest

from hfpipe import models
from hfpipe.bench.origins import check_reference, origin_of
from hfpipe.errors import UsageError
from hfpipe.export import report as reports
from hfpipe.store import identity


@pytest.fixture
def llama(tiny_llama):
    return models.resolve(str(tiny_llama))


@pytest.fixture
def export(tiny_llama_ov):
    return models.resolve(str(tiny_llama_ov))


def made_of(monkeypatch, **source):
    """Have every export say what it was made of."""
    monkeypatch.setattr(reports, "read", lambda folder: {"source": source})


def test_the_source_is_the_one_that_is_named(llama, export, tiny_gpt2, monkeypatch):
    gpt2 = models.resolve(str(tiny_gpt2))
    assert origin_of(llama, [llama, export], gpt2) is llama
    assert origin_of(export, [llama, export], None) is None
    assert origin_of(export, [llama, export], gpt2) is gpt2
    made_of(monkeypatch, model=llama.reference)
    assert origin_of(export, [llama, export], gpt2) is llama
    assert origin_of(export, [export], gpt2) is gpt2


def test_a_reference_that_may_be_the_source(llama, export):
    assert check_reference(llama, [export]) == []
    # What only one of them says is no reason.
    assert check_reference(replace(llama, config={}), [export]) == []


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_reference_of_another_architecture(llama, export, key):
    other = replace(llama, config={**llama.config, key: 7})
    with pytest.raises(UsageError) as caught:
        check_reference(other, [export])
    assert f"{export.reference} was not made of {llama.reference}: its {key} is " in caught.value.message
    assert "--reference" in caught.value.hint
    assert check_reference(other, []) == []


def test_a_reference_whose_weights_are_others(llama, export, monkeypatch):
    made_of(monkeypatch, model="org/model", sha256=identity(llama.folder))
    assert check_reference(llama, [export]) == []
    made_of(monkeypatch, model="org/model", sha256="0" * 64)
    (warning,) = check_reference(llama, [export])
    assert warning.startswith(f"{export.reference} was made of another model than {llama.reference}, or of another ")
    made_of(monkeypatch, model="org/model")
    assert check_reference(llama, [export]) == []
