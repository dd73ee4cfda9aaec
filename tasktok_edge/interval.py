"""How sure is a difference? A paired bootstrap over frames, and what it means for an allowed drop."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from tasktok_edge.evidence import Floats, Meter

Outcome = Literal["pass", "fail", "not enough frames"]
CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 20261
BATCH = 100  # resamples at once: memory, not the result


@dataclass(frozen=True)
class Interval:
    """A difference of metrics, device minus server, in [-1, 1], and where it lies at 95 % confidence."""

    value: float
    low: float
    high: float

    def outcome(self, max_drop: float) -> Outcome:
        """Pass where a larger drop is ruled out, fail where the allowed one is.

        >>> Interval(-0.02, -0.03, -0.012).outcome(0.01), Interval(0.0, -0.02, 0.02).outcome(0.01)
        ('fail', 'not enough frames')
        """
        if self.low >= -max_drop:
            return "pass"
        return "fail" if self.high < -max_drop else "not enough frames"

    def frames_needed(self, max_drop: float, n: int) -> int:
        """How many frames narrow the interval to the allowed drop on either side: its width falls with their square root.

        >>> Interval(0.0, -0.02, 0.02).frames_needed(0.01, 500)
        2000
        """
        half = (self.high - self.low) / 2
        return max(2, int(np.ceil(round(n * (half / max_drop) ** 2, 6))))


def paired_interval(device: Meter, server: Meter, n: int, *, seed: int = SEED, resamples: int = RESAMPLES) -> Interval:
    """Bootstrap the difference of two metrics on the same `n` frames, each resample the same frames for both.

    Bias-corrected and accelerated (Efron 1987), by scipy. The same arguments give the same interval, whatever made the metrics.
    """

    def difference(drawn: NDArray[Any], axis: int = -1) -> Floats:
        rows = np.atleast_2d(drawn).reshape(-1, drawn.shape[-1])
        weights = np.zeros((len(rows), n))
        np.add.at(weights, (np.arange(len(rows))[:, None], rows), 1)
        return (device(weights) - server(weights)).reshape(drawn.shape[:-1])

    value = float(difference(np.arange(n)))
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):  # of what is looked after below
        found = bootstrap(
            (np.arange(n),),
            difference,
            vectorized=True,
            n_resamples=resamples,
            batch=BATCH,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    drawn = found.bootstrap_distribution
    if np.ptp(drawn) == 0:  # the same answers throughout: BCa divides by their spread
        return Interval(value, value, value)
    low, high = (float(x) for x in found.confidence_interval)
    if not np.isfinite([low, high]).all():  # where all or none of the resamples are below the value
        low, high = (float(x) for x in np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    return Interval(value, low, high)
