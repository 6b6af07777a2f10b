"""`python -m mfgp`: the command line."""

from mfgp.cli import app

if __name__ == "__main__":  # processes that it starts import this, too
    app(prog_name="mfgp")
