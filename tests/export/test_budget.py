"""int4 within a budget: which layers are measured together, which mix is chosen, and what attempts teach."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfpipe import models
from hfpipe.errors import HFPipeError, UnsupportedModel, UsageError
from hfpipe.export import ExportOptions, budget, exporter
from hfpipe.export.budget import Curve, Group, grouped, loss_of
from hfpipe.export.plan import make_plan
from hfpipe.export.quantization import Layer
from hfpipe.process import run_child
from hfpipe.quality.score_layers import round_to
from hfpipe.types import Silent
from tests.export.test_plan import write_llama
from tests.fake_models import write_model

MB = 1_000_000


def curve(kls=(0.001, 0.002, 0.004, 0.02), gain=0.5):
    """From 140 MB, each group of the given divergence taking 10 MB less."""
    groups = tuple(Group((f"layer{number}",), 10 * MB, kl) for number, kl in enumerate(kls))
    return Curve(groups, 140 * MB, 0.002, gain)


# Groups


@given(st.lists(st.sampled_from(["q_proj", "down_proj", "fc1"]), unique=True), st.integers(1, 90))
def test_each_layer_is_in_one_group_with_neighbours_of_its_kind(kinds, blocks):
    names = [f"model.layers.{block}.{kind}.weight" for block in range(blocks) for kind in kinds]
    groups = [[layer.name for layer in group] for group in grouped([Layer(name, 32, 1) for name in names])]
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert len(groups) <= 60
    for group in groups:
        numbers = [int(name.split(".")[2]) for name in group]
        assert numbers == list(range(numbers[0], numbers[0] + len(group)))
        assert len({name.split(".")[3] for name in group}) == 1


# What is chosen

budgets = st.one_of(
    st.builds(ExportOptions, max_loss=st.floats(0.0001, 0.5)),
    st.builds(ExportOptions, max_size=st.integers(90 * MB, 150 * MB)),
    st.builds(ExportOptions, max_loss=st.floats(0.0001, 0.5), max_size=st.integers(90 * MB, 150 * MB)),
)


@given(budgets)
def test_by_size_the_first_that_is_small_enough_and_by_loss_the_last_that_is_good_enough(options):
    made = curve()
    chosen, mixes = made.chosen(options), made.mixes()
    if options.max_size is not None:
        fitting = [one.count for one in mixes if one.size <= options.max_size]
        assert chosen.count == (fitting[0] if fitting else 4)
    else:
        fitting = [one.count for one in mixes if loss_of(one.kl) <= options.max_loss]
        assert chosen.count == (fitting[-1] if fitting else 0)
    assert chosen.in_8_bits == tuple(f"layer{number}" for number in range(chosen.count, 4))


@given(st.integers(0, 4), st.integers(80 * MB, 160 * MB), st.floats(0, 0.2))
def test_after_an_attempt_what_it_has_shown_is_expected(count, size, kl):
    made = curve()
    made.correct(made.mix(count), size, kl)
    assert made.mix(count).size == pytest.approx(size)
    assert made.mix(count).kl == pytest.approx(kl)
    kls = [one.kl for one in made.mixes()]
    assert kls == sorted(kls)


def test_a_loss_is_what_perplexity_rises_by():
    assert loss_of(math.log(1.02)) == pytest.approx(0.02)
    assert loss_of(0) == 0


# The search


class Exports:
    """In place of the children: exports that are a little larger than expected, and lose `factor` times what rounding
    does."""

    def __init__(self, factor):
        self.factor, self.made = factor, []

    def size(self, count):
        return 141 * MB - 10 * MB * count

    def kl(self, count):
        return 0.002 + self.factor * sum(group.kl for group in curve().groups[:count])

    def make(self, plan, folder, verify, reference, verbose, reporter):
        count = 4 - len(plan.in_8_bits) if plan.weight_format == "int4" else 0
        assert count not in self.made
        self.made.append(count)
        (folder / "openvino_model.bin").write_text(str(count))
        return {"size": self.size(count), "quality": {"mean_kl": self.kl(count)}, "request": plan.request()}


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.5, 1.0, 1.5])
@pytest.mark.parametrize(
    "options",
    [
        *({"max_loss": loss} for loss in (0.002, 0.0035, 0.006, 0.01, 0.5)),
        *({"max_size": size * MB} for size in (160, 141, 140, 125, 101, 100)),
        {"max_loss": 0.006, "max_size": 125 * MB},
    ],
)
def test_what_is_found_keeps_to_the_budget_and_is_the_best_that_does(tmp_path, monkeypatch, factor, options):
    exports, asked = Exports(factor), ExportOptions(**options)
    monkeypatch.setattr(budget, "measure", lambda *_, **__: curve())
    monkeypatch.setattr(exporter, "_make", exports.make)
    plan = make_plan(models.resolve(str(write_llama(tmp_path / "model"))), tmp_path / "out", asked)
    folder = tmp_path / "work" / "folder"
    folder.mkdir(parents=True)
    possible = [n for n in range(5) if budget.attempt(asked, exports.size(n) + budget.REPORT_BYTES, exports.kl(n)).fits]
    if not possible:
        with pytest.raises(HFPipeError, match=r"No export keeps to the budget. Tried: 1\d\d MB that lose"):
            exporter._made(plan, folder, True, lambda: None, False, Silent())
        assert not list(folder.iterdir())
    else:
        report = exporter._made(plan, folder, True, lambda: None, False, Silent())
        found = int((folder / "openvino_model.bin").read_text())
        assert found == (possible[0] if "max_size" in options else possible[-1])
        assert report["size"] == exports.size(found)
        assert report["budget"]["tried"][exports.made.index(found)]["fits"]
        assert report["request"] == plan.request()
        assert len(report["made_with"]["in_8_bits"]) == (4 - found if found else 0)
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_source_that_cannot_be_scored_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "measure", lambda *_, **__: curve())
    monkeypatch.setattr(exporter, "_make", lambda *_: {"size": 1, "warnings": ["Not compared with its source."]})
    plan = make_plan(models.resolve(str(write_llama(tmp_path / "model"))), None, ExportOptions(max_loss=0.02))
    with pytest.raises(HFPipeError, match="Not compared with its source"):
        exporter._made(plan, tmp_path, True, None, False, Silent())


# Plans


@pytest.fixture
def source(tmp_path):
    return models.resolve(str(write_llama(tmp_path / "model", width=256, inner=512, layers=24)))


def test_nothing_is_calibrated_on_what_is_measured_on(source):
    plan = make_plan(source, None, ExportOptions(max_loss=0.02))
    assert plan.weight_format == "int4"
    assert plan.options.ratio == 1.0
    assert plan.budget
    assert plan.calibration
    held, calibrated = set(plan.budget.texts), set(plan.calibration.samples)
    assert len(held) == 5
    assert len(calibrated) > 40
    assert not held & calibrated
    assert plan.request() != make_plan(source, None, ExportOptions(max_loss=0.03)).request()
    assert plan.estimate.seconds > make_plan(source, None, ExportOptions("int4")).estimate.seconds


def test_groups_are_coarser_where_the_size_needs_it(source):
    sizes = {size: make_plan(source, None, ExportOptions(max_size=10**9, group_size=size)) for size in (32, 64, 128)}
    for size, plan in sizes.items():
        allowed = plan.budget.size("int4", plan.options)
        assert make_plan(source, None, ExportOptions(max_size=allowed)).options.group_size == size
    with pytest.raises(UsageError, match=r"With all layers in 4 bits .* takes about"):
        make_plan(source, None, ExportOptions(max_size=allowed - 1))
    with pytest.raises(UsageError, match=r"With all layers in 4 bits .* takes about"):
        make_plan(source, None, ExportOptions(max_size=allowed, group_size=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loss": 0.0}, "max_loss must be above 0"),
        ({"max_loss": 1.5}, "max_loss must be above 0"),
        ({"max_size": 0}, "max_size must be positive"),
        ({"max_loss": "2%"}, "max_loss must be a number, a share such as 0.02, not '2%'"),
        ({"max_size": True}, "max_size must be a number, bytes, not True"),
        ({"max_size": 1e5}, "max_size must be a number, bytes, not 100000.0"),
        ({"max_loss": 0.02, "ratio": 0.8}, "ratio cannot be combined"),
        ({"max_loss": 0.02, "weight_format": "int8"}, "max_loss needs weight_format int4"),
        ({"max_size": 10, "weight_format": "fp16"}, "max_size needs weight_format int4"),
    ],
)
def test_what_contradicts_a_budget(options, message):
    with pytest.raises(UsageError, match=message):
        ExportOptions(**options)


def test_what_goes_to_the_exporter_does_so_where_all_are_in_8_bits(source):
    given = {"max_loss": 0.02, "sym": True, "extra": ("--disable-convert-tokenizer",)}
    plan = make_plan(source, None, ExportOptions(**given))
    made = exporter._of(curve().mix(0), plan)
    assert made.weight_format == "int8"
    assert {"--sym", "--disable-convert-tokenizer"} < set(made.command(Path("OUTPUT")))


def test_layers_that_no_group_size_divides_stay_in_8_bits(tmp_path, monkeypatch):
    some = models.resolve(str(write_llama(tmp_path / "some", width=72, inner=256)))
    plan = make_plan(some, None, ExportOptions(max_loss=0.02))
    monkeypatch.setattr(budget, "run_child", lambda module, asked, **_: [0.0, *[0.1] * len(asked["groups"])])
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    measured = budget.measure(some, plan.budget, plan.options, Silent())
    assert {one.in_8_bits[-1].rpartition(".")[2] for one in measured.mixes()} == {"q_proj"}
    none = models.resolve(str(write_llama(tmp_path / "none", width=72, inner=100)))
    with pytest.raises(UnsupportedModel, match="no usual group size divides its layers"):
        make_plan(none, None, ExportOptions(max_loss=0.02))


def test_a_budget_needs_measuring_and_layers(source, tmp_path):
    with pytest.raises(UsageError, match="they need the verification"):
        make_plan(source, None, ExportOptions(max_loss=0.02), verify=False)
    (source.folder / "model.safetensors").rename(source.folder / "pytorch_model.bin")
    pickled = models.resolve(str(source.folder), allow_pickle=True)
    with pytest.raises(UnsupportedModel, match="its weights are pickles"):
        make_plan(pickled, None, ExportOptions(max_loss=0.02, allow_pickle=True))
    other = models.resolve(str(write_model(tmp_path / "t5", model_type="t5", is_encoder_decoder=True)))
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        make_plan(other, None, ExportOptions(max_loss=0.02))


# Measuring


QUANTIZED = """
import sys
import nncf, numpy as np, openvino as ov
from openvino import opset13
mode, size = sys.argv[1], int(sys.argv[2])
parameter = opset13.parameter([-1, 128], ov.Type.f32)
weight = opset13.constant(np.load("weight.npy"))
layer = opset13.matmul(parameter, weight, transpose_a=False, transpose_b=True)
more = {"group_size": size, "ratio": 1.0, "all_layers": True} if "4" in mode else {}
model = nncf.compress_weights(ov.Model([layer], [parameter]), mode=nncf.CompressWeightsMode[mode], **more)
config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
np.save("quantized.npy", ov.compile_model(model, "CPU", config)(np.eye(128, dtype=np.float32))[0].T)
"""


@pytest.mark.parametrize(("bits", "sym"), [(4, False), (4, True), (8, False)])
def test_rounding_is_that_of_data_free_quantization(tmp_path, bits, sym):
    weight = np.random.default_rng(0).normal(size=(48, 128)).astype(np.float32)
    size = 32 if bits == 4 else -1
    np.save(tmp_path / "weight.npy", weight)
    mode = f"INT{bits}_{'SYM' if sym else 'ASYM'}"
    # Of its own: nncf imports distutils, after which setuptools warns.
    subprocess.run([sys.executable, "-c", QUANTIZED, mode, str(size)], cwd=tmp_path, check=True)
    theirs = np.load(tmp_path / "quantized.npy")
    ours = round_to(torch.from_numpy(weight), bits, size, sym=sym).numpy()
    assert np.abs(theirs - ours).max() < 2e-3
    assert np.abs(theirs - weight).max() > 2e-3


def test_what_a_group_size_does_not_divide_stays_as_it_is():
    weight = torch.randn(4, 48)
    assert round_to(weight, 4, 32, sym=False) is weight


def test_each_group_is_measured_alone_and_the_model_is_as_before(tiny_llama: Path):
    names = [f"model.layers.0.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")]
    asked = {
        "source": str(tiny_llama),
        "reference": "tiny",
        "dtype": "float32",
        "layers": dict.fromkeys(names, False),
        "groups": [names[:1], names, names[:1], []],
        "group_size": 32,
        "sym": False,
        "texts": ["The quick brown fox jumps over the lazy dog. " * 4, "And once more."],
        "trust_remote_code": False,
        "allow_pickle": False,
    }
    in_8_bits, one, three, again, none = run_child("hfpipe.quality.score_layers", asked, what="x")
    assert 0 < in_8_bits < one < three
    assert (again, none) == (one, 0.0)
    with pytest.raises(UnsupportedModel, match=r"has no weight model\.other"):
        run_child("hfpipe.quality.score_layers", asked | {"layers": {"model.other": False}}, what="x")


def test_it_is_measured_once(tiny_llama: Path, monkeypatch, tmp_path):
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    plan = make_plan(models.resolve(str(tiny_llama)), tmp_path / "out", ExportOptions(max_loss=0.02, group_size=16))
    asked = []

    def child(module, arguments, **_):
        asked.append(module)
        return [0.001, *(0.01 * number for number in range(len(arguments["groups"]), 0, -1))]

    monkeypatch.setattr(budget, "run_child", child)
    first, second = (budget.measure(plan.source, plan.budget, plan.options, Silent()) for _ in range(2))
    assert asked == ["hfpipe.quality.score_layers"]
    assert first == second
    monkeypatch.setenv("HFPIPE_CACHE", "/proc/no-cache")
    assert budget.measure(plan.source, plan.budget, plan.options, Silent()) == first
    assert asked == ["hfpipe.quality.score_layers"] * 2
    costs = [group.kl / group.saved for group in first.groups]
    assert costs == sorted(costs)
    assert sorted(name for group in first.groups for name in group.names) == sorted(
        layer.name.removesuffix(".weight") for layer in plan.budget.shapes.layers
    )
