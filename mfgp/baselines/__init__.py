"""Calculators below the Gaussian process: their labels as columns, and the short-range repulsion `zbl`."""

from mfgp.baselines.columns import Baseline, make_baselines

__all__ = ["Baseline", "make_baselines"]
