"""Model files that tests change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from mfgp.model_file import _hash as contents_hash


def rewrite(path: Path, change: dict[str, object]) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["mfgp"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, path, {"mfgp": json.dumps(header | change)})


def as_written(path: Path, changed: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    """Write the file again with another header, and the checksum that goes with it."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["mfgp"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    header = less(header, "hash", *without) | changed
    header["hash"] = contents_hash(header, tensors)
    save_file(tensors, path, {"mfgp": json.dumps(header)})


def less(data: dict[str, Any], *names: str) -> dict[str, Any]:
    """Without these keys."""
    return {k: v for k, v in data.items() if k not in names}
