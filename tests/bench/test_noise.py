"""What other processes took meanwhile."""

import os
import subprocess
import sys
import time
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest

from hfpipe.bench import noise
from hfpipe.bench.noise import Watch

Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")


@pytest.fixture
def machine(monkeypatch):
    """Two processors whose clock and times are made."""
    made = SimpleNamespace(now=0.0, all=Times(*[0.0] * 10), own=(0.0,) * 4)
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "cpu_times", lambda: made.all)
    names = ("user", "system", "children_user", "children_system")
    process = SimpleNamespace(cpu_times=lambda: SimpleNamespace(**dict(zip(names, made.own, strict=True))))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    return made


def test_what_is_not_ours_is_others(machine):
    watch = Watch()
    machine.now = 10.0
    machine.own = (9.0, 1.0, 2.5, 0.5)
    machine.all = Times(14.0, 0, 1.0, 3.0, 1.0, 0, 0, 1.0, 5.0, 0)
    # 14 + 1 + 1 busy seconds, 13 of them ours, of 20 that there were.
    assert watch.stop().others_cpu == pytest.approx(0.15)


@pytest.mark.parametrize(("own", "others"), [(9.0, 0.0), (0.0, 0.4)])
def test_a_share_is_never_below_zero(machine, own, others):
    watch = Watch()
    machine.now, machine.own, machine.all = 10.0, (own, 0.0, 0.0, 0.0), Times(8.0, *[0.0] * 9)
    assert watch.stop().others_cpu == pytest.approx(others)


def test_a_frequency_that_cannot_be_read(monkeypatch):
    for answer in (lambda: None, lambda: SimpleNamespace(current=0.0)):
        monkeypatch.setattr(psutil, "cpu_freq", answer)
        assert Watch().stop().frequency_mhz is None

    def refuse():
        raise NotImplementedError

    monkeypatch.setattr(psutil, "cpu_freq", refuse)
    assert Watch().stop().frequency_mhz is None
    monkeypatch.setattr(psutil, "cpu_freq", lambda: SimpleNamespace(current=2600.5))
    assert Watch().stop().frequency_mhz == 2600.5


def test_another_process_is_seen():
    """It keeps a processor busy for the half second, and longer."""
    code = "import time; print('up', flush=True); end = time.time() + 20\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as busy:
        busy.stdout.readline()
        watch = Watch()
        time.sleep(0.5)
        found = watch.stop().others_cpu
        busy.kill()
    assert found > 0.4 / os.cpu_count()


def test_a_sample_keeps_it(machine):
    assert noise.Noise(0.5, None).as_dict() == {"others_cpu": 0.5, "frequency_mhz": None}
