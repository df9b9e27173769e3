"""What is compiled is compiled before it is needed, and leaves nothing behind."""

import subprocess
import sys

import pytest
import torch

from supsup_online import warm_up
from supsup_online.network import Network
from unit import tiny


@pytest.mark.parametrize("spec", ["LEARNING", "LEARNING_IMAGES"])
def test_after_warming_up_a_step_and_a_decision_compile_nothing(spec):
    asked = """
import numba.core.dispatcher as dispatcher
from unit import tiny
from supsup_online.warm_up import warm_up

spec = getattr(tiny, "{spec}")
warm_up(tiny.network(spec))
def refuse(*_):
    raise AssertionError("compiled after all")
dispatcher.Dispatcher._compile_for_args = refuse
subject = tiny.learner(spec=spec)
tiny.run(subject, tiny.permuted(0)(30), tiny.permuted(1)(30, seed=1), tiny.permuted(0)(10, seed=2))
assert len(subject.bank) >= 2
""".replace("{spec}", spec)
    subprocess.run([sys.executable, "-c", asked], check=True, env={"PYTHONPATH": ":".join(sys.path), "HOME": "/tmp"})  # noqa: S108


def test_a_network_on_another_device_needs_no_warming(monkeypatch):
    monkeypatch.setattr(Network, "device", property(lambda _: torch.device("meta")))
    monkeypatch.setattr(warm_up, "trainer_for", lambda *_: pytest.fail("there is nothing to compile"))
    warm_up.warm_up(tiny.network())
