"""Files of --json that are read again, and those that are none."""

import json
import math
import statistics

import pytest

from hfpipe.bench.report import Measured, Sample, read_report
from hfpipe.errors import UsageError
from tests.bench import made


@pytest.mark.parametrize("values", [[3.0], [2.0, 5.0, 1.0], [4.0, 1.0, 2.0, 8.0]])
def test_samples_come_to_their_median_and_range(values):
    row = made.configuration("a")
    row.samples = [Sample("single", number, {"x": value}) for number, value in enumerate([*values, math.nan])]
    assert row.measured("x") == Measured(statistics.median(values), min(values), max(values), len(values))
    assert row.measured("y") is None


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt_tokens": "512"},
        {"prompt_tokens": 0},
        {"new_tokens": None},
        {"new_tokens": True},
        {"batches": 8},
        {"batches": "18"},
        {"batches": [1, 0.5]},
        {"batches": None},
    ],
)
def test_arguments_of_no_report(tmp_path, changed):
    data = json.loads(json.dumps(made.usual().as_dict()))
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**data, "arguments": {**data["arguments"], **changed}}))
    with pytest.raises(UsageError, match=r"report\.json is no report of hfpipe bench: "):
        read_report(path)


@pytest.mark.parametrize("name", ["prompt_tokens", "new_tokens", "batches"])
def test_arguments_that_a_report_lacks(tmp_path, name):
    data = json.loads(json.dumps(made.usual().as_dict()))
    del data["arguments"][name]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"is no report of hfpipe bench: it has no {name}\."):
        read_report(path)


@pytest.mark.parametrize(
    "changed", [{"arguments": []}, {"arguments": None}, {"host": []}, {"configurations": 1}, {"configurations": ["a"]}]
)
def test_parts_of_no_report(tmp_path, changed):
    data = json.loads(json.dumps(made.usual().as_dict()))
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**data, **changed}))
    with pytest.raises(UsageError, match="is no report of hfpipe bench: "):
        read_report(path)


def test_a_row_without_a_model_is_of_no_report(tmp_path):
    data = json.loads(json.dumps(made.usual().as_dict()))
    data["configurations"][0]["model"] = None
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="have to be texts"):
        read_report(path)


@pytest.mark.parametrize("name", ["arguments", "host", "created"])
def test_a_report_that_lacks_a_part(tmp_path, name):
    data = json.loads(json.dumps(made.usual().as_dict()))
    del data[name]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"is no report of hfpipe bench: it has no {name}\."):
        read_report(path)
