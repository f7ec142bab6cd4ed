"""Made reports against earlier ones."""

import pytest

from hfpipe.bench.baseline import check_comparable, check_decidable, compare
from hfpipe.errors import UsageError
from tests.bench import made


def test_a_baseline():
    old = made.report(made.configuration("a", 60), made.configuration("b", 60), made.configuration("gone", 60))
    now = made.report(made.configuration("a", 60), made.configuration("b", 50), made.configuration("new", 60))
    found = compare(now, old, 0.10)
    assert {one.name for one in found.differences} == {"a", "b"}
    assert len(found.differences) == 20
    by_metric = {one.metric.name: one.verdict for one in found.differences if one.name == "b"}
    assert by_metric["tg128"].ratio == pytest.approx(5 / 6)
    assert by_metric["tg128"].text.startswith("1.20x slower (1.1")
    assert {one.metric.name for one in found.differences if one.name == "b" and one.verdict.slower} > {"itl_ms_p99"}
    assert [(one.name, one.metric.name) for one in found.too_slow] == [
        ("b", name) for name in ("ttft_ms", "tpot_ms", "pp512", "tg128")
    ]
    assert (found.only_here, found.only_there, found.lost, found.changed_host) == (["new"], [], ["gone"], [])
    assert not found.passed


def test_a_baseline_of_another_model_has_nothing_in_common():
    old = made.report(made.configuration("torch", 60, model="org/one"))
    now = made.report(made.configuration("torch", 50, model="org/two"))
    found = compare(now, old)
    assert (found.differences, found.only_here, found.only_there, found.lost) == ([], ["torch"], [], ["torch"])
    assert found.passed
    assert not compare(now, old, 0.10).passed


def test_the_same_model_has_another_name_beside_others():
    old = made.report(
        made.configuration("m torch", 60, model="org/m"),
        made.configuration("other torch", 60, model="org/other"),
        made.configuration("m torch (2)", 90, model="org/m"),
    )
    now = made.report(
        made.configuration("torch", 50, model="/models/m/"), made.configuration("torch (2)", 90, model="/models/m/")
    )
    found = compare(now, old, 0.10)
    assert {one.name for one in found.too_slow} == {"torch"}
    assert {one.name for one in found.differences} == {"torch", "torch (2)"}
    assert (found.only_here, found.only_there, found.lost) == ([], [], ["other torch"])


def test_an_engine_and_a_format_are_compared_with_themselves():
    old, now = (made.report(*(made.configuration(name, 60, model="m") for name in "ab")) for _ in range(2))
    old.configurations[0].backend = now.configurations[1].backend = "torch"
    old.configurations[1].weight_format = now.configurations[0].weight_format = "int4"
    found = compare(now, old)
    assert {one.name for one in found.differences} == {"a", "b"}
    now.configurations[0].weight_format = None
    assert {one.name for one in compare(now, old).differences} == {"b"}


def test_what_is_lost():
    there = [
        made.configuration("fine", 60),
        made.configuration("fails", 60),
        made.configuration("empty", 60),
        made.configuration("gone", 60),
        made.configuration("failed", error="no"),
        made.configuration("failed and gone", 60, error="no"),
    ]
    here = [
        made.configuration("fine", 60),
        made.configuration("fails now", 60, error="no", model="fails"),
        made.configuration("empty"),
        made.configuration("failed", error="no"),
        made.configuration("failed and new", error="no"),
    ]
    found = compare(made.report(*here), made.report(*there), 0.10)
    assert found.lost == ["fails now", "empty", "gone"]
    assert found.only_there == ["failed and gone"]
    assert (found.too_slow, found.passed) == ([], False)
    assert compare(made.report(*here), made.report(*there)).passed
    found = compare(made.report(*there), made.report(*here), 0.10)
    assert (found.lost, found.passed) == ([], True)


@pytest.mark.parametrize(("fail_slower", "failed"), [(0.10, True), (0.15, True), (0.19, False), (None, False)])
def test_slower_than_is_allowed(fail_slower, failed):
    old, now = made.report(made.configuration("a", 60)), made.report(made.configuration("a", 50))
    found = compare(now, old, fail_slower)
    assert bool(found.too_slow) == failed
    assert found.passed != failed
    assert not compare(old, now, fail_slower).too_slow


def test_noise_fails_no_baseline():
    old = made.report(made.configuration("a", 60, wobble=100))
    now = made.report(made.configuration("a", 54, wobble=-100))
    assert not compare(now, old, 0.05).too_slow


def test_more_memory_is_not_slower():
    old = made.report(made.configuration("a", 60))
    now = made.report(made.configuration("a", 60, peak_rss_mb=2_048.0))
    found = compare(now, old, 0.10)
    assert not found.too_slow
    assert {one.metric.name: one.verdict.text for one in found.differences}["peak_rss_mb"] == (
        "4.00x larger (4.00 to 4.00)"
    )


def test_other_batches_and_hosts_are_compared_in_what_is_common():
    old = made.report(made.configuration("a", 60, batches=[8]), batches=(1, 8))
    now = made.report(made.configuration("a", 60, batches=[8, 32]), batches=(1, 8, 32))
    now.host["cpu"] = "EPYC"
    found = compare(now, old)
    assert [one.metric.name for one in found.differences if one.metric.name.startswith("batch")] == ["batch8_tps"]
    assert found.changed_host == ["cpu"]


def test_versions_that_changed_have_names():
    old, now = made.usual(), made.usual()
    old.host["versions"] = {"hfpipe": "1", "torch": "2.9", "nncf": None, "openvino": "2026.1"}
    now.host["versions"] = {"hfpipe": "1", "torch": "2.10", "openvino": "2026.2"}
    assert compare(now, old).changed_host == ["versions of torch, openvino"]
    now.host["versions"] = old.host["versions"]
    assert compare(now, old).changed_host == []
    del now.host["versions"]
    assert compare(now, old).changed_host == ["versions"]


def test_other_numbers_of_tokens_cannot_be_compared():
    old = made.usual()
    old.arguments["prompt_tokens"] = 256
    with pytest.raises(UsageError, match="different numbers of tokens") as caught:
        compare(made.usual(), old)
    assert caught.value.hint == "Compare with a run with -p 256 -g 128."


def asked(prompt_tokens, new_tokens=128, batches=(1,), prompts=None):
    """A report of nothing."""
    report = made.report(batches=batches)
    report.arguments.update(prompt_tokens=prompt_tokens, new_tokens=new_tokens, prompts=prompts)
    return report


def test_prompts_of_the_user_cannot_be_compared_with_random_ones():
    own, random = asked(None), asked(512, batches=(1, 8))
    with pytest.raises(UsageError, match=r"measured with random prompts\.") as caught:
        check_comparable(own, random)
    assert caught.value.hint == "Compare with a run with -p 512 -g 128, without --prompts."
    with pytest.raises(UsageError, match=r"measured with prompts of --prompts\.") as caught:
        check_comparable(random, own)
    assert caught.value.hint == "Compare with a run with its --prompts -g 128."
    with pytest.raises(UsageError, match="different numbers of tokens") as caught:
        check_comparable(asked(None, 64), own)
    assert caught.value.hint == "Compare with a run with its --prompts -g 128."
    check_comparable(own, own)
    check_comparable(asked(512), random)


def test_other_prompts_cannot_be_compared():
    one, other = [{"id": "1", "prompt": "One."}], [{"id": "1", "prompt": "Another."}]
    with pytest.raises(UsageError, match="measured with different prompts") as caught:
        check_comparable(asked(None, prompts=one), asked(None, prompts=other))
    assert caught.value.hint == "Compare with a run with its --prompts."
    check_comparable(asked(None, prompts=one), asked(None, prompts=one))


def test_where_no_speed_is_in_both_nothing_passes():
    old = made.report(made.configuration("a", 60))
    old.configurations[0].samples = [one for one in old.configurations[0].samples if one.task == "start"]
    found = compare(made.report(made.configuration("a", 60)), old, 0.10)
    assert {one.metric.name for one in found.differences} == {"cold_ttft_s"}
    assert (found.judged, found.lost, found.passed) == ([], [], False)
    assert compare(made.report(made.configuration("a", 60)), old).passed


def test_too_few_rounds_pass_nothing():
    old, now = made.report(made.configuration("a", 60)), made.report(made.configuration("a", 6, rounds=2))
    found = compare(now, old, 0.10)
    assert found.differences
    assert (found.judged, found.passed) == ([], False)


@pytest.mark.parametrize(
    ("repeats", "rounds", "decidable"), [(3, 3, True), (2, 5, False), (5, 2, False), (5, 0, False)]
)
def test_too_few_rounds_are_refused(repeats, rounds, decidable):
    now = made.report(repeats=repeats)
    old = made.report(made.configuration("a", 60, rounds=rounds), made.configuration("b", error="no"))
    if decidable:
        check_decidable(now, old)
    else:
        with pytest.raises(UsageError, match="3 rounds"):
            check_decidable(now, old)
