"""Writing files: links stay, devices are refused, a full disk is an error that says so."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mfgp import DataError, ModelFileError, MultiFidelityGP
from mfgp.base.files import replacing


def test_what_a_link_points_at_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "data" / "target.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="is no file"), replacing(pipe):
        pass
    assert pipe.is_fifo()


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As on a full disk: longer files cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_model_that_the_disk_does_not_hold(model: MultiFidelityGP, tmp_path: Path) -> None:
    path = tmp_path / "m.mfgp"
    path.write_text("what was there before")
    with pytest.raises(ModelFileError, match=r"m.mfgp could not be written: "), no_file_above(4096):
        model.save(path)
    assert path.read_text() == "what was there before"
    assert sorted(tmp_path.iterdir()) == [path]
