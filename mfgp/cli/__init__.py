"""The command line, one module a command."""

from mfgp.cli.main import app

__all__ = ["app"]
