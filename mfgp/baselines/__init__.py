"""Calculators below the Gaussian process: labels as columns, a short-range repulsion (`zbl`), electrostatics (`coulomb`)."""

from mfgp.baselines.columns import Baseline, make_baselines

__all__ = ["Baseline", "make_baselines"]
