"""What is compiled is compiled before it is needed, and leaves nothing behind."""

import subprocess
import sys

import pytest

from supsup_online import warm_up
from supsup_online.network import Network
from unit import tiny


def test_after_warming_up_a_step_and_a_decision_compile_nothing():
    asked = """
import numba.core.dispatcher as dispatcher
from unit import tiny
from supsup_online.warm_up import warm_up

warm_up(tiny.network())
def refuse(*_):
    raise AssertionError("compiled after all")
dispatcher.Dispatcher._compile_for_args = refuse
subject = tiny.learner()
tiny.run(subject, tiny.permuted(0)(30), tiny.permuted(1)(30, seed=1), tiny.permuted(0)(10, seed=2))
assert len(subject.bank) == 2
"""
    subprocess.run([sys.executable, "-c", asked], check=True, env={"PYTHONPATH": ":".join(sys.path), "HOME": "/tmp"})  # noqa: S108


def test_a_network_without_kernels_needs_no_warming(monkeypatch):
    monkeypatch.setattr(Network, "has_kernels", property(lambda _: False))
    monkeypatch.setattr(warm_up, "trainer_for", lambda *_: pytest.fail("there is nothing to compile"))
    warm_up.warm_up(tiny.network())
