"""Typed configuration of a campaign: which structures, which levels, which calculators, when to stop.

    target: mag                       # the level whose forces are to become sure
    fit: fit.yaml                     # a fit's configuration with its data; or `model: start.mfgp`
    pool: [pool.extxyz]               # structures to choose from
    stop: {std: 0.10, hours: 20}      # eV/Å (rms over the target's forces); hours of calculations
    batch: {n: 8}
    levels:
      gfn1: {calculator: tblite, settings: {method: GFN1-xTB}, retry: {settings: {electronic_temperature: 1000}}}

Read as `mfgp.config` reads a fit's: one line for each mistake, paths relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from ase.data import atomic_numbers
from pydantic import Field, field_validator, model_validator

from mfgp.base.config_errors import Section
from mfgp.base.yaml_files import in_file, read_yaml
from mfgp.config import Float, Int
from mfgp.errors import ConfigError

PLAIN = (bool, int, float, str, type(None))
Settings: TypeAlias = dict[str, Any]  # plain YAML values: numbers, text, lists and sections of them


def _plain(value: Any, path: str = "") -> None:
    """ValueError for anything that is not plain YAML: settings are data, never code."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, PLAIN):
                raise ValueError(f"{path}{key!r}: keys are text or numbers")
            _plain(inner, f"{path}{key}.")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _plain(inner, f"{path}{i}.")
    elif not isinstance(value, PLAIN):
        raise ValueError(f"{path.rstrip('.')}: a {type(value).__name__} where plain YAML values are expected")


class _WithSettings(Section):
    settings: Settings = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _plain_values(cls, value: Settings) -> Settings:
        _plain(value)
        return value


class RetryConfig(_WithSettings):
    """Settings that replace those of the first attempt, key by key, when a calculation failed or did not converge."""


class SpinConfig(Section):
    """Spin states that are accepted: |moment| of every atom of an element, in Bohr magnetons, one or several values."""

    moments: dict[str, tuple[Float, ...]] = Field(min_length=1)
    tolerance: Float = Field(default=0.9, gt=0)

    @field_validator("moments", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        unknown = [str(symbol) for symbol in value if symbol not in atomic_numbers or symbol == "X"]
        if unknown:
            raise ValueError(f"no chemical element {', '.join(unknown)}; write symbols, such as Fe")
        return {symbol: v if isinstance(v, (list, tuple)) else (v,) for symbol, v in value.items()}


class LevelConfig(_WithSettings):
    """How a level is calculated.

    calculator: an ASE name (emt, gpaw, vasp, espresso, ...) or tblite; None where Python passes the calculator. retry: other
    settings for a second attempt. magmoms: initial moments by element, where a structure has none of its own. spin: states
    that are accepted. hours: expected cost until `MEASURED` calculations have been measured. max_hours: a calculation that
    takes longer (wall time) is stopped and counts as failed. max_force: eV/Å; more is taken for a failure. stress: keep it.
    """

    calculator: str | None = Field(default=None, min_length=1)
    retry: RetryConfig | None = None
    magmoms: dict[str, Float] = Field(default_factory=dict)
    spin: SpinConfig | None = None
    hours: Float | None = Field(default=None, gt=0)
    max_hours: Float | None = Field(default=None, gt=0)
    max_force: Float = Field(default=100.0, gt=0)
    stress: bool = True

    def attempts(self) -> int:
        """How often a structure is tried."""
        return 1 if self.retry is None else 2

    def settings_of(self, attempt: int) -> Settings:
        """Settings of attempt 1, 2."""
        return {**self.settings, **(self.retry.settings if self.retry is not None and attempt > 1 else {})}


class StopConfig(Section):
    """When to stop: at a std (eV/Å, rms over the target's force components), hours of calculations, or a number of steps."""

    std: Float | None = Field(default=None, gt=0)
    hours: Float | None = Field(default=None, gt=0)
    steps: Int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_at_least(self) -> StopConfig:
        if self.std is None and self.hours is None and self.steps is None:
            raise ValueError("give at least one of std (eV/Å), hours and steps, or it never stops")
        return self


class BatchConfig(Section):
    """What is chosen before the model is updated: at most n calculations, at most so many hours."""

    n: Int | None = Field(default=None, ge=1)
    hours: Float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_at_least(self) -> BatchConfig:
        if self.n is None and self.hours is None:
            raise ValueError("give n, hours, or both")
        return self


class WorkersConfig(Section):
    """Processes on this machine, or the address of a dask scheduler (`tcp://...`) whose workers see the same files."""

    n: Int = Field(default=1, ge=1)
    threads: Int = Field(default=1, ge=1)
    scheduler: str | None = None


class CampaignConfig(Section):
    """A campaign. Raises ConfigError, one line for each mistake."""

    target: str = Field(min_length=1)
    model: Path | None = None
    fit: Path | None = None
    pool: tuple[Path, ...] = Field(min_length=1)
    targets: tuple[Path, ...] = ()
    stop: StopConfig
    batch: BatchConfig = BatchConfig(n=8)
    refit_every: Int | None = Field(default=None, ge=1)
    workers: WorkersConfig = WorkersConfig()
    levels: dict[str, LevelConfig] = Field(min_length=1)
    seed: Int = Field(default=0, ge=0)

    @field_validator("pool", "targets", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, Path)) else value

    @model_validator(mode="after")
    def _one_start(self) -> CampaignConfig:
        if (self.model is None) == (self.fit is None):
            raise ValueError("give either model (a model file) or fit (a configuration with its data)")
        if self.refit_every is not None and self.fit is None:
            raise ValueError("refit_every needs fit: a model file does not hold the data that it was fitted to")
        return self

    def absolute(self, folder: Path) -> CampaignConfig:
        """With paths that no longer depend on where they are read; relative ones are those of `folder`."""
        files = {name: getattr(self, name) for name in ("model", "fit")}
        found: dict[str, Any] = {name: None if f is None else folder / f.expanduser() for name, f in files.items()}
        lists = {name: tuple(folder / f.expanduser() for f in getattr(self, name)) for name in ("pool", "targets")}
        return self.model_copy(update={**found, **lists})

    def to_yaml(self) -> str:
        """YAML that load_campaign_config reads back."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def load_campaign_config(path: str | os.PathLike[str], *, sources: bool = True) -> CampaignConfig:
    """Configuration of a YAML file, its paths made absolute; those of data must exist unless `sources` is False.

    Raises ConfigError, one line for each mistake.
    """
    path = Path(path)
    try:
        config = CampaignConfig(**read_yaml(path))
    except ConfigError as error:
        if str(error).startswith(str(path)):  # it could not be read
            raise
        raise in_file(path, str(error).splitlines()) from None
    config = config.absolute(path.resolve().parent)
    named = [("model", config.model), ("fit", config.fit)]
    named += [(name, f) for name in ("pool", "targets") for f in getattr(config, name)]
    missing = [
        f"{name}: no file {file.name!r} in {file.parent}; paths are relative to the campaign's configuration"
        for name, file in named
        if file is not None and sources and not file.is_file()
    ]
    if missing:
        raise in_file(path, missing)
    return config
