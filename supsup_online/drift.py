"""Drift detection on the loss before each update, by any of river's detectors.

The detector reads residuals (see `running_loss`), so its thresholds need not know the level of the loss. It starts
anew with every decision, hence has seen at most one window of values; those values are all that has to be stored to
restore it exactly: they are fed to a fresh detector again. No private state is reached into, and nothing is pickled.
"""

from collections.abc import Callable, Sequence
from typing import Final

from river import drift
from river.base import DriftDetector

from supsup_online.types import DetectorName

_FACTORIES: Final[dict[str, Callable[[float], DriftDetector | None]]] = {
    # Sums how far the residual rises above its mean: one large jump or several small ones. Fades, so that a
    # slow random walk does not add up over a window.
    "page-hinkley": lambda tolerance: drift.PageHinkley(
        min_instances=1, delta=1.0, threshold=tolerance, alpha=0.9, mode="up"
    ),
    "adwin": lambda _: drift.ADWIN(delta=0.002, clock=1, min_window_length=2, grace_period=4),
    # Ten values against ten is the least that can reach this alpha: of two samples of n, the Kolmogorov-Smirnov test
    # gives no p below 2 / C(2n, n), which is 0.008 for n = 5 and 0.00001 for n = 10.
    "kswin": lambda _: drift.KSWIN(alpha=0.0001, window_size=30, stat_size=10, seed=0),
    "none": lambda _: None,
}
DETECTORS: Final = tuple(_FACTORIES)


class DriftMonitor:
    """A river detector over the residuals since the last decision.

    Attributes:
        residuals: what it has seen since it was reset.
    """

    def __init__(self, detector: DetectorName, tolerance: float, residuals: Sequence[float] = ()) -> None:
        self._name = detector
        self._tolerance = tolerance
        self.reset()
        for residual in residuals:
            self.update(residual)

    def reset(self) -> None:
        """Forget everything: a decision was made."""
        self._detector = _FACTORIES[self._name](self._tolerance)
        self.residuals: list[float] = []
        if self._detector is not None:
            self._detector.update(0.0)  # what a fitting batch looks like, so that the very next one can stand out

    def update(self, residual: float) -> bool:
        """Take in one residual; whether the stream has drifted.

        A loss below the usual one is a mask that learns, not drift: it counts as zero. Else a young mask, whose loss
        falls steeply and then levels off, would look like one that is getting worse.
        """
        if self._detector is None:
            return False
        self.residuals.append(residual)
        self._detector.update(max(residual, 0.0))
        return bool(self._detector.drift_detected)
