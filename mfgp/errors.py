"""Errors that a user can act on: each names the input, what was found, and the way out."""

from __future__ import annotations


class MfgpError(Exception):
    """Base of every error that mfgp raises about its input; the command line prints it without a traceback."""


class DataError(MfgpError, ValueError):
    """A structure or label file that cannot be used as it is."""


class ConfigError(MfgpError, ValueError):
    """A configuration that cannot be used as it is."""


class ModelFileError(MfgpError, ValueError):
    """A model file that is damaged, of a later schema, or not a model file."""


class NumericalError(MfgpError, ArithmeticError):
    """A factorisation that failed for reasons the user can change."""


class WorkersError(MfgpError, RuntimeError):
    """Worker processes that did not start, or ended before their work was done."""
