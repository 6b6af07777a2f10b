"""The doctor: what may be wrong with labelled data, before a fit and, with a model's help, after it."""

from mfgp.doctor.checks import examine

__all__ = ["examine"]
