"""Calculators below the Gaussian process: their labels as columns, and the short-range repulsion `zbl`."""
