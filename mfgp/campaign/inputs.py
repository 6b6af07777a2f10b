"""The files that a campaign was made of, which it reads once: that they were changed is told, as it has no effect."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from mfgp.campaign.config import CampaignConfig
from mfgp.campaign.store import Store
from mfgp.config import FitConfig, load_config
from mfgp.errors import ConfigError

_NAMES = ("pool", "targets", "fit", "model")
_OTHER = (
    "make another campaign of them (`campaign init`) and take the labels of this one over (here `campaign export -o "
    "labels.extxyz`, there `campaign add labels.extxyz`)"
)


def record(store: Store, config: CampaignConfig) -> None:
    """Write down, in the transaction that makes a campaign, which files it was made of and what was in them (SHA-256)."""
    contents = {name: {str(f): _hash(f) for f in _files(config, name)} for name in _NAMES}
    store.set_meta("inputs", json.dumps(contents))


def check(store: Store, config: CampaignConfig, file: Path) -> None:
    """ConfigError where `file` names others than the campaign was made of; a warning where these were changed.

    They need not be there any more (`_as_recorded`). Of campaigns that were made before this was written down nothing is
    known.
    """
    text = store.meta("inputs")
    if text is None:
        return
    for name, before in json.loads(text).items():
        now = _as_recorded(_files(config, name), before)
        if sorted(map(str, now)) != sorted(before):
            was, found = (", ".join(map(str, sorted(group))) or "none" for group in (before, now))
            raise ConfigError(
                f"{file}: {name} cannot change within a campaign, which reads it when it is made. It was {was}; now it is "
                f"{found}. Put it back (the files need not be there), or {_more(name)}{_OTHER}."
            )
        if name in ("pool", "targets"):
            changed = [f.name for f in now if f.is_file() and _changed(f, before[str(f)])]
            if changed:
                _warn(f"{name}: {', '.join(changed)} changed since the campaign read it", _more(name))
    if config.fit is not None and _fit_changed(store, config.fit):
        _warn(f"{config.fit} changed since the campaign was made, which fits by what it has read")


def record_again(store: Store, files: Iterable[Path]) -> None:
    """In a transaction: what is in files of the pool that were read once more."""
    text = store.meta("inputs")
    if text is None:
        return
    contents = json.loads(text)
    contents["pool"].update({str(f.resolve()): _hash(f) for f in files if str(f.resolve()) in contents["pool"]})
    store.set_meta("inputs", json.dumps(contents))


def _more(name: str) -> str:
    return "add structures with `campaign extend`, or " if name == "pool" else ""


def _changed(file: Path, before: str | int) -> bool:
    """Whether a file is another than the one of a record: its hash, in the first ones its size."""
    return (file.stat().st_size if isinstance(before, int) else _hash(file)) != before


def _hash(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _warn(text: str, way_out: str = "") -> None:
    warnings.warn(f"{text}; to use the new ones, {way_out}{_OTHER}", stacklevel=5)


def _fit_changed(store: Store, file: Path) -> bool:
    try:
        now = load_config(file, sources=False)
    except (ConfigError, OSError):  # gone, or used for something else by now
        return False
    return now != FitConfig(**yaml.safe_load(store.meta("fit") or "{}"))


def _files(config: CampaignConfig, name: str) -> list[Path]:
    """Each once."""
    found = getattr(config, name)
    group = found if isinstance(found, tuple) else () if found is None else (found,)
    return list(dict.fromkeys(Path(path).resolve() for path in group))


def _as_recorded(files: Sequence[Path], recorded: Iterable[str]) -> list[Path]:
    """Files by the paths that were written down.

    One that is not there, but has the name of one that was, is that one (as in a copy of the configuration that `init` was
    given, whose paths are relative to another directory); of several of a name each is taken once, in their order.
    """
    before = [Path(path) for path in recorded]
    others: dict[str, list[Path]] = {}
    for path in before:
        if path not in files:
            others.setdefault(path.name, []).append(path)
    out = []
    for file in files:
        alike = [] if file in before or file.is_file() else others.get(file.name, [])
        out.append(alike.pop(0) if alike else file)
    return out
