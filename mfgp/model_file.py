"""Model files: safetensors, with one JSON header (metadata entry `mfgp`). No pickle, nothing executed, written atomically.

The header holds the schema version, units, levels, configuration, descriptor species, baselines (name and settings, never
code), counts and hash of the training data, and what training did; tensors hold the rest. Symmetric matrices are stored as
their lower triangle. `SCHEMA` grows with every change of meaning: a file of an earlier schema is upgraded on reading by the
functions in `model_upgrades`, one of a later schema explains itself.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from descriptors import SOAP, Contraction
from mfgp import __version__
from mfgp.base.devices import resolve_device
from mfgp.base.files import replacing
from mfgp.baselines.checks import verify
from mfgp.baselines.columns import first_levels, make_baselines
from mfgp.calibration.calibration import Calibration
from mfgp.config import FitConfig
from mfgp.data.costs import CostModel
from mfgp.errors import ModelFileError
from mfgp.fit.features import Features
from mfgp.fit.fitting import make_noise, make_prior
from mfgp.gp.centring import centred_statistics
from mfgp.gp.inducing import InducingBasis, build_basis
from mfgp.gp.observations import Columns
from mfgp.gp.pair_term import pair_term
from mfgp.gp.site_moments import site_posterior
from mfgp.gp.statistics import Moments, Statistics
from mfgp.gp.training import TrainingResult
from mfgp.gp.vacuum_term import vacuum_term
from mfgp.model import MultiFidelityGP
from mfgp.model_upgrades import SCHEMA, Header, checked, early_version

UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3", "length": "Å", "noise_energy": "eV per sqrt(atom)"}

_EXPECTED = "expected what `mfgp fit CONFIG.yaml -o MODEL` or model.save(MODEL) wrote"


def save(model: MultiFidelityGP, path: str | Path) -> None:
    """Write the model; a file of that name is replaced only by a complete one. ModelFileError for a path that is none."""
    if not Path(path).absolute().parent.is_dir():
        raise ModelFileError(f"cannot write {path}: there is no folder {Path(path).absolute().parent}; make it first.")
    if Path(path).is_dir():
        raise ModelFileError(f"cannot write {path}: it is a folder; name a file in it.")
    tensors, header = _tensors(model), _header(model)
    header["hash"] = _hash(header, tensors)
    metadata = {"mfgp": json.dumps(header, sort_keys=True)}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # what it makes of an OSError, a full disk above all
            raise ModelFileError(f"{path} could not be written: {error}") from None


def _tensors(model: MultiFidelityGP) -> dict[str, Tensor]:
    """What the file holds beside the header, by name; symmetric and triangular matrices packed (`_pack`)."""
    tensors: dict[str, Tensor] = {
        "rank": model.basis.rank,
        "reference": model.columns.reference,
        "column_std": model.column_std,
        "scale": model.prior.scale,
        "rho": model.prior.rho_parameter,
        "noise": model.noise.noise,
        "weights": model.weights,
        "covariances": torch.stack([_pack(c) for c in model.covariances]),
    }
    if model.columns.coefficients is not None:
        tensors["coefficients"] = model.columns.coefficients
    for z, points, factor in zip(model.basis.species, model.basis.points, model.basis.factors, strict=True):
        tensors[f"points.{z}"] = points
        tensors[f"factor.{z}"] = _pack(factor)  # not made again: rounding would differ, and weights are in its basis
    if model.soap.contraction is not None:
        for degree, matrix in enumerate(model.soap.contraction.matrices):
            tensors[f"contraction.{degree}"] = matrix
    for level, kind in model.statistics.observed():
        m = model.statistics.moments[level, kind]
        tensors[f"statistics.{level}.{kind}.gram"] = _pack(m.gram)
        tensors[f"statistics.{level}.{kind}.projection"] = m.projection
    for (level, z), m in model.site_statistics.moments.items():
        tensors[f"sites.{level}.{z}.gram"] = _pack(m.gram)
        tensors[f"sites.{level}.{z}.projection"] = m.projection
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _header(model: MultiFidelityGP) -> Header:
    moments = model.statistics.moments
    return {
        "format": "mfgp model",
        "schema": SCHEMA,
        "mfgp_version": __version__,
        "torch_version": torch.__version__,
        "units": UNITS,
        "levels": list(model.levels),
        "species": list(model.basis.species),
        "config": model.config.model_dump(mode="json"),
        "baselines": list(model.columns.baselines),
        "baseline_checks": model.baseline_checks,
        "jitter": model.basis.jitter,
        "centred": True,
        "vacuum": [] if model.columns.vacuum is None else list(model.columns.vacuum.species),
        "vacuum_shapes": 0 if model.columns.vacuum is None else model.columns.vacuum.shapes,
        "shear": model.columns.shear,
        "retained": None if model.soap.contraction is None else list(model.soap.contraction.retained),
        "data": model.data,
        "data_hash": model.data_hash(),
        "seen": sorted(model.seen),
        "calculated": sorted(model.calculated),
        "statistics": [[t, kind, moments[t, kind].square, moments[t, kind].count] for t, kind in sorted(moments)],
        "training": None if model.training is None else asdict(model.training),
        "calibration": None if model.calibration is None else model.calibration.to_json(),
        "costs": model.costs.to_json(),
        "own_sigmas": model.own_sigmas.tolist(),
        "sites": [
            [*key, m.square, m.count, model.sites[key].amplitude, model.sites[key].noise]
            for key, m in sorted(model.site_statistics.moments.items())
        ],
        "hyperparameters": model.hyperparameters(),
        "n_inducing": model.basis.size,
    }


def read_header(path: str | Path) -> Header:
    """The header alone, upgraded to the present schema. Raises ModelFileError for what is not a whole model file."""
    return checked(Path(path), _stored_header(Path(path)))


def _stored_header(path: Path) -> Header:
    """The header as it was written: what its checksum is about."""
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise ModelFileError(f"no model file {path}: {path.resolve()} {what}.")
    try:
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get("mfgp")
    except (SafetensorError, OSError, ValueError) as error:
        if (found := _foreign(path)) is not None:
            raise ModelFileError(f"{path} is no model file: found {found}; {_EXPECTED}.") from error
        raise ModelFileError(f"{path} is not a complete model file ({error}); copy it again or fit again.") from error
    if raw is None:
        raise ModelFileError(f"{path} is no model file: found safetensors without the header of mfgp; {_EXPECTED}.")
    try:
        header = json.loads(raw)
        schema = header["schema"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} is damaged: its header cannot be read. Copy it again or fit again.") from error
    if type(schema) is not int or schema < 1:
        raise ModelFileError(f"{path} has schema {schema!r}, which no version of mfgp wrote; {_EXPECTED}.")
    if schema > SCHEMA:
        raise ModelFileError(
            f"{path} has schema {schema}, written by mfgp {header.get('mfgp_version')}; this is mfgp {__version__}, which "
            f"reads schemas up to {SCHEMA}. Upgrade mfgp to read it."
        )
    return header


def _foreign(path: Path) -> str | None:
    """What a file is that does not even begin like safetensors (8 bytes of length, then JSON); None for one that does."""
    with path.open("rb") as file:
        start = file.read(256)
    if len(start) > 8 and start[8:9] == b"{":
        return None
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return "a zip archive (a torch checkpoint, perhaps)"
    if start.startswith(b"\x80"):
        return "a pickle"
    line = start.split(b"\n")[0][:40]
    if all(32 <= byte < 127 or byte in b"\t\r" or byte > 127 for byte in line):
        return f"a text file that begins with {line.decode(errors='replace').strip()!r}"
    return "bytes that are no safetensors"


def load(path: str | Path, baselines: Mapping[str, Any] | None = None) -> MultiFidelityGP:
    """Read a model file onto the configured device.

    baselines: calculators by name for baselines that are not in the registry. Raises ModelFileError for a damaged file, or
    one of a later schema; ConfigError naming the baselines that are missing, or are not those of the fit.
    """
    stored, header, tensors = _contents(Path(path))
    with early_version(Path(path), stored):
        config, costs = FitConfig.model_validate(header["config"]), CostModel.from_json(header["costs"])
        training = None if header["training"] is None else TrainingResult(**header["training"])
        calibration = None if header["calibration"] is None else Calibration.from_json(header["calibration"])
    config, device = _on_this_machine(config)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    levels, species = tuple(header["levels"]), tuple(header["species"])
    basis = _basis(config, species, header, tensors)
    columns = _columns(config, levels, species, header, tensors)
    prior = make_prior(levels, basis, config.model.rho).to(device)
    prior.set_scale(tensors["scale"])
    prior.rho_parameter.data.copy_(tensors["rho"])
    noise = make_noise(levels, config).to(device)
    noise.set_noise(tensors["noise"])
    size = basis.size + columns.size
    features = Features(_soap(config, species, header, tensors), basis, device)
    calculators = make_baselines(config.baselines, baselines, levels)
    verify(header["baseline_checks"], calculators)
    statistics = _statistics(header, tensors, size)
    if not header["centred"]:
        statistics = centred_statistics(statistics, features.centre)
    noise.know_forces(statistics)
    prior.know_forces(statistics, basis.size)
    data, seen = header["data"], frozenset(header["seen"])
    model = MultiFidelityGP(
        config, levels, features, columns, tensors["column_std"], prior, noise, statistics, calculators, data, seen
    )
    model.baseline_checks = header["baseline_checks"]
    model.training, model.calibration, model.costs = training, calibration, costs
    model.calculated = frozenset(header["calculated"])
    model.own_sigmas = torch.tensor(header["own_sigmas"], dtype=torch.float64)
    _load_sites(model, header, tensors)
    model.weights = tensors["weights"]
    model.covariances = torch.stack([_unpack(c, size) for c in tensors["covariances"]])
    return model


def _columns(
    config: FitConfig, levels: tuple[str, ...], species: tuple[int, ...], header: Header, tensors: dict[str, Tensor]
) -> Columns:
    """Those of e0, the baselines and the terms of the model."""
    names, first = tuple(header["baselines"]), first_levels(config.baselines, levels)
    pair = pair_term(config.pair, species)
    vacuum = vacuum_term(tuple(header["vacuum"]), config.descriptor, header["vacuum_shapes"])
    coefficients, shear = tensors.get("coefficients"), header["shear"]
    return Columns(species, tensors["reference"], names, first, coefficients, pair, vacuum, shear)


def _contents(path: Path) -> tuple[Header, Header, dict[str, Tensor]]:
    """The header as it is in the file and as this version writes it, and the tensors; ModelFileError where damaged."""
    stored = _stored_header(path)
    header = checked(path, stored)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if stored.get("hash") != _hash({k: v for k, v in stored.items() if k != "hash"}, tensors):
        raise ModelFileError(f"{path} is damaged: its contents do not match its checksum. Copy it again or fit again.")
    return stored, header, tensors


def _on_this_machine(config: FitConfig) -> tuple[FitConfig, torch.device]:
    """Where a model runs, and its configuration there: a warning where it was fitted on CUDA and there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        warnings.warn("the model was fitted on CUDA and there is none here; it runs on the CPU", stacklevel=4)
    device = resolve_device("cpu" if config.device == "cpu" else "auto")
    if device.type == "cpu" and config.device == "cuda":
        config = config.model_copy(update={"device": "auto"})
    return config, device


def _basis(config: FitConfig, species: tuple[int, ...], header: Header, tensors: Mapping[str, Tensor]) -> InducingBasis:
    points, zeta = tuple(tensors[f"points.{z}"] for z in species), config.model.zeta
    if header["jitter"] is None:  # no factors in this file
        return build_basis(species, points, tensors["rank"], zeta)
    factors = tuple(_unpack(tensors[f"factor.{z}"], len(p)).tril() for z, p in zip(species, points, strict=True))
    return InducingBasis(species, points, factors, tensors["rank"], zeta, header["jitter"])


def _statistics(header: Header, tensors: Mapping[str, Tensor], size: int) -> Statistics:
    moments = {
        (t, kind): Moments(
            _unpack(tensors[f"statistics.{t}.{kind}.gram"], size),
            tensors[f"statistics.{t}.{kind}.projection"],
            square,
            count,
        )
        for t, kind, square, count in header["statistics"]
    }
    return Statistics(size, moments)


def _load_sites(model: MultiFidelityGP, header: Header, tensors: Mapping[str, Tensor]) -> None:
    for level, z, square, count, amplitude, noise in header.get("sites", []):  # early files of this schema have none
        projection = tensors[f"sites.{level}.{z}.projection"]
        m = Moments(_unpack(tensors[f"sites.{level}.{z}.gram"], len(projection)), projection, square, count)
        model.site_statistics.moments[level, z] = m
        model.sites[level, z] = site_posterior(m, amplitude, noise)


def _soap(config: FitConfig, species: tuple[int, ...], header: Header, tensors: Mapping[str, Tensor]) -> SOAP:
    if header["retained"] is None:
        return SOAP(config.descriptor, species)
    matrices = tuple(tensors[f"contraction.{degree}"].cpu() for degree in range(config.descriptor.l_max + 1))
    return SOAP(config.descriptor, species, Contraction(matrices, tuple(header["retained"])))


def _pack(matrix: Tensor) -> Tensor:
    """Lower triangle of a symmetric matrix, row by row."""
    rows, columns = torch.tril_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def _unpack(packed: Tensor, size: int) -> Tensor:
    out = packed.new_empty(size, size)
    rows, columns = torch.tril_indices(size, size, device=packed.device)
    out[rows, columns] = packed
    out[columns, rows] = packed
    return out


def _hash(header: Header, tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the header (without its hash) and every tensor's name, type, shape and contents."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name].cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.numpy().tobytes())
    return digest.hexdigest()
