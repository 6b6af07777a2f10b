"""Predictions of one level: means, exact variances and their shares, many structures at a time, differences of energies."""
