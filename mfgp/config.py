"""Typed configuration of a fit: YAML or Python in, validated once, one line for each mistake.

    FitConfig(descriptor=SOAPConfig(r_cut=5.0), model=ModelConfig(zeta=4))
    load_config("config.yaml", overrides=("model.zeta=3",))

What is given overrides the preset, what the preset leaves open has the defaults below.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from descriptors.config import SOAPConfig
from mfgp.base.config_errors import Section
from mfgp.base.yaml_files import in_file, override_key, read_yaml
from mfgp.data.labels import LabelKeys
from mfgp.data.sources import LIKE_NOISE, NOISE
from mfgp.errors import ConfigError

Setting: TypeAlias = bool | int | float | str


def _no_bool(value: Any) -> Any:
    """YAML's `zeta: yes` is not the number 1."""
    if isinstance(value, bool):
        raise ValueError(f"should be a number, found {value}")
    return value


Int: TypeAlias = Annotated[int, BeforeValidator(_no_bool)]
Float: TypeAlias = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]


class FidelityConfig(Section):
    """One level of theory and its training files."""

    name: str = Field(min_length=1)
    train: tuple[Path, ...] = Field(min_length=1)

    @field_validator("train", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, Path)) else value


class FixedRho(Section):
    """rho held at a number: one for every step between levels, or one for each of the T - 1 steps."""

    fixed: float | tuple[float, ...]

    @field_validator("fixed", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values or any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in values):
            raise ValueError(f"should be a number, or a list with one number for each step, found {value!r}")
        return value

    def values(self, n_steps: int) -> list[float]:
        """rho of each step. Raises ConfigError when a list has another length than `n_steps` = T - 1."""
        values = list(self.fixed) if isinstance(self.fixed, tuple) else [self.fixed] * n_steps
        if len(values) != n_steps:
            raise ConfigError(
                f"model.rho.fixed: {len(values)} values for {n_steps + 1} levels; give {n_steps}, one for each step."
            )
        return values


class ModelConfig(Section):
    """zeta: exponent of the kernel. n_inducing: M. rho: scalar, one per central species, or fixed."""

    zeta: Int = Field(default=4, ge=1, le=8)
    n_inducing: Int = Field(default=1000, ge=1)
    rho: Literal["scalar", "species"] | FixedRho = "scalar"

    @field_validator("rho", mode="before")
    @classmethod
    def _scalar_species_or_fixed(cls, value: Any) -> Any:
        if isinstance(value, FixedRho) or value in ("scalar", "species"):
            return value
        if isinstance(value, Mapping) and set(value) == {"fixed"}:
            return FixedRho(fixed=value["fixed"])
        raise ValueError(f"should be scalar, species or {{fixed: number}}, found {value!r}")


class CoefficientPrior(Section):
    """Gaussian prior of a baseline's coefficient (dimensionless)."""

    mean: Float = 1.0
    std: Float = Field(default=0.3, gt=0)


class BaselineConfig(Section):
    """A baseline by name, the lowest level that uses it (None: the lowest), and settings for its calculator."""

    name: str = Field(min_length=1)
    from_level: str | None = None
    coefficient: CoefficientPrior = CoefficientPrior()
    settings: dict[str, Setting] = Field(default_factory=dict)

    @field_validator("settings", mode="before")
    @classmethod
    def _plain_values(cls, value: Any) -> Any:
        bad = [k for k, v in value.items() if not isinstance(v, Setting)] if isinstance(value, Mapping) else []
        if bad:
            raise ValueError(f"{', '.join(map(str, bad))} should be a number, text, true or false")
        return value


def _named(value: Any) -> Any:
    """A baseline that is only a name."""
    return {"name": value} if isinstance(value, str) else value


class PairConfig(Section):
    """A pair potential of n functions for each pair of elements, up to r_cut (Å).

    std: prior standard deviation of its coefficients, eV, and of their changes from level to level.
    """

    r_cut: Float = Field(default=4.0, gt=0)
    n: Int = Field(default=12, ge=2, le=100)
    std: Float = Field(default=1.0, gt=0)


class TrainingConfig(Section):
    """How hyperparameters are learned.

    objective: evidence (projected process), vfe (its variational bound) or cv (log density of folds given the others).
    n_optimise: inducing points used while they are learned (None: all). optimise: False keeps the initial noises (raised
    to what float64 can carry): noise_energy eV per sqrt(atom), noise_force eV/Å, noise_virial eV per sqrt(atom), of
    virials on the diagonal (1/sqrt(2) of it off the diagonal).
    calibrate: scale standard deviations to errors of left-out structures after the fit.
    max_energy_ratio: largest noise_energy / noise_force (Å) that may be learned; smaller values favour energies.
    """

    objective: Literal["evidence", "vfe", "cv"] = "evidence"
    calibrate: bool = True
    optimise: bool = True
    max_iterations: Int = Field(default=100, ge=1)
    n_optimise: Int | None = Field(default=600, ge=1)
    noise_energy: Float = Field(default=0.005, gt=0)
    noise_force: Float = Field(default=0.05, gt=0)
    noise_virial: Float = Field(default=0.05, gt=0)
    max_energy_ratio: Float = Field(default=0.1, gt=0)


# from folds of acetylacetone, silicon and LMFP (docs/accuracy.md)
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "molecule": {
        "descriptor": {"r_cut": 5.0, "n_max": 6, "l_max": 3, "sigma": 0.6, "radial_scaling": {"r0": 1.0, "m": 2}},
        "model": {"zeta": 2, "n_inducing": 3000},
    },
    "solid": {
        "descriptor": {"r_cut": 5.0, "n_max": 8, "l_max": 6, "sigma": 0.5, "radial_scaling": {"r0": 1.5, "m": 3}},
        "model": {"zeta": 4, "n_inducing": 1000},
    },
    "oxide": {
        "descriptor": {"r_cut": 5.0, "n_max": 5, "l_max": 4, "sigma": 0.5, "radial_scaling": {"r0": 1.5, "m": 3}},
        "model": {"zeta": 2, "n_inducing": 2000},
    },
}


class FitConfig(Section):
    """Everything a fit needs besides the data. Raises ConfigError (a ValueError), one line for each mistake."""

    preset: Literal["molecule", "solid", "oxide"] | None = None
    fidelities: tuple[FidelityConfig, ...] = ()
    keys: LabelKeys = LabelKeys()
    descriptor: SOAPConfig = SOAPConfig()
    model: ModelConfig = ModelConfig()
    baselines: tuple[Annotated[BaselineConfig, BeforeValidator(_named)], ...] = ()
    pair: PairConfig | None = None
    training: TrainingConfig = TrainingConfig()
    seed: Int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        name = data.get("preset") if isinstance(data, Mapping) else None
        if not isinstance(name, str) or name not in PRESETS:
            return _with_scaling(data)
        preset = PRESETS[name]
        return {**data, **{section: _over(preset[section], data.get(section)) for section in preset}}

    @model_validator(mode="after")
    def _consistent(self) -> FitConfig:
        problems = [*_repeated("fidelities", self.fidelities), *_repeated("baselines", self.baselines)]
        levels = [fidelity.name for fidelity in self.fidelities]
        problems += [
            f"baselines.{i}.from_level: unknown fidelity {baseline.from_level!r}; known are {', '.join(levels)}"
            for i, baseline in enumerate(self.baselines)
            if levels and baseline.from_level is not None and baseline.from_level not in levels
        ]
        if levels and isinstance(self.model.rho, FixedRho):
            try:
                self.model.rho.values(len(levels) - 1)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(
                "\n".join(problems)
            )  # pydantic turns it into a ValidationError, Section into a ConfigError
        return self

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, cheapest first; empty when the fit gets its frames from Python."""
        return tuple(fidelity.name for fidelity in self.fidelities)

    def to_yaml(self) -> str:
        """YAML that load_config and FitConfig read back to an equal configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = (), *, sources: bool = True) -> FitConfig:
    """Configuration of a YAML file; training files are relative to it, and must exist unless `sources` is False.

    overrides: dotted keys with YAML values, 'model.zeta=3', 'baselines.0.coefficient.mean=0'.

    Raises ConfigError, one line for each mistake: no such file, YAML syntax (with the line), unknown keys, wrong
    types or values, training files that do not exist.
    """
    path = Path(path)
    data = read_yaml(path)
    for override in overrides:
        override_key(data, override)
    try:
        config = FitConfig(**data)
    except ConfigError as error:
        raise in_file(path, str(error).splitlines()) from None
    if NOISE in config.levels:  # not refused in FitConfig: headers of model files have one
        raise in_file(path, [f"fidelities.{config.levels.index(NOISE)}.name: {LIKE_NOISE}"])
    return _with_paths(config, path, sources)


def _with_scaling(data: Any) -> Any:
    """Without a preset: what a radial scaling leaves open has the defaults, too, as every other setting."""
    descriptor = data.get("descriptor") if isinstance(data, Mapping) else None
    scaling = descriptor.get("radial_scaling") if isinstance(descriptor, Mapping) else None
    default = SOAPConfig().radial_scaling
    if not isinstance(descriptor, Mapping) or not isinstance(scaling, Mapping) or default is None:
        return data
    return {**data, "descriptor": {**descriptor, "radial_scaling": {**default.model_dump(), **scaling}}}


def _over(preset: Mapping[str, Any], given: Any) -> Any:
    """`given` on top of the preset, key by key; of a section built in Python only what was set explicitly."""
    if given is None:
        return dict(preset)
    if isinstance(given, BaseModel):
        given = {name: getattr(given, name) for name in given.model_fields_set}
    if not isinstance(given, Mapping):
        return given
    nested = {name: _over(preset[name], given[name]) for name in given if _both_sections(preset.get(name), given[name])}
    return {**preset, **given, **nested}


def _both_sections(preset: Any, given: Any) -> bool:
    return isinstance(preset, Mapping) and isinstance(given, (Mapping, BaseModel))


def _repeated(section: str, entries: Sequence[FidelityConfig] | Sequence[BaselineConfig]) -> list[str]:
    names = [entry.name for entry in entries]
    return [
        f"{section}.{i}.name: {name!r} is used twice; give each its own name"
        for i, name in enumerate(names)
        if name in names[:i]
    ]


def _with_paths(config: FitConfig, path: Path, sources: bool) -> FitConfig:
    """Training files relative to the config file, all of which must exist where `sources` says so."""
    folder = path.resolve().parent
    fidelities = []
    missing = []
    for i, fidelity in enumerate(config.fidelities):
        files = tuple(folder / file.expanduser() for file in fidelity.train)
        missing += [
            f"fidelities.{i}.train: no file {file.name!r} in {file.parent}; train paths are relative to the config file"
            for file in files
            if sources and not file.is_file()
        ]
        fidelities.append(fidelity.model_copy(update={"train": files}))
    if sources and not missing:
        missing = _shared_files(fidelities)
    if missing:
        raise in_file(path, missing)
    return config.model_copy(update={"fidelities": tuple(fidelities)})


def _shared_files(fidelities: Sequence[FidelityConfig]) -> list[str]:
    """Files that are named for two levels."""
    level_of: dict[Path, str] = {}
    problems = []
    for i, fidelity in enumerate(fidelities):
        for file in fidelity.train:
            other = level_of.setdefault(file.resolve(), fidelity.name)
            if other != fidelity.name:
                problems.append(
                    f"fidelities.{i}.train: {file.name!r} is named for {fidelity.name!r} and for {other!r}; labels of two "
                    "levels differ, so name the right file of each"
                )
    return problems
