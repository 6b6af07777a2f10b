"""What a term or a setting of the model is worth, on folds of training sets; test sets are not read.

    python benchmarks/accuracy/terms.py acac --data PATH_TO_acac --set descriptor.sigma=0.6 --set model.zeta=2
    python benchmarks/accuracy/terms.py silicon --data PATH_TO_mlearn_si --points 500,1000 --every 2
    python benchmarks/accuracy/terms.py lmfp --rho scalar,species,1

The descriptor, the inducing points and the sufficient statistics are made once; the errors at several numbers of inducing
points come from prefixes of the selection. Folds:

    acac      PBE alone. `hot`: the 30 molecules of highest energy, as far from the others as the training set offers;
              `cold`: 40 others; the first --n of the rest train. `fold` (--fifth): every tenth of the set, 400 others train
    joint     acac at two levels: the same fold, 400 GFN1-xTB molecules and --n PBE ones train
    silicon   every fourth structure is held out; --every 2 takes half of the training and of the held-out ones
    lmfp      nm, and four fifths of the mag training structures; `fold`: the other fifth at mag (--part 0 .. 4)
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mfgp import FitConfig, FrameSet, read_frames
from mfgp.base.progress import bars
from mfgp.baselines.columns import make_baselines
from mfgp.config import ModelConfig
from mfgp.datasets import load_lmfp
from mfgp.fit.features import Features
from mfgp.fit.fitting import build_columns, learn, make_noise, make_prior, training_data
from mfgp.frames import Frame
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.centring import mean_features, uncentred
from mfgp.gp.hyperparameters import inverse_variances
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.levels import Chain, Posterior
from mfgp.gp.objectives import TrainingData
from mfgp.gp.observations import Columns
from mfgp.tuning import with_settings

Folds = dict[str, list[Frame]]
STARTS: dict[str, dict[str, Any]] = {
    "acac": {"preset": "molecule"},
    "silicon": {
        "preset": "solid",
        "descriptor": {"sigma": 0.6, "radial_scaling": {"r0": 3.0, "m": 2}},  # best for forces of silicon alone
        "training": {"max_energy_ratio": 0.02},
    },
    "joint": {"preset": "molecule"},
    "lmfp": {"preset": "oxide"},
}


def main(
    case: Annotated[str, typer.Argument(help="acac, joint, silicon or lmfp.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data; lmfp is in the project.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Setting, as for mfgp fit.")] = None,
    points: Annotated[str, typer.Option(help="Numbers of inducing points.")] = "500,1500",
    n: Annotated[int, typer.Option(help="acac: molecules trained on.")] = 100,
    fifth: Annotated[bool, typer.Option(help="acac: the fold of a tenth of the set, with 400 trained on.")] = False,
    every: Annotated[int, typer.Option(help="silicon: each so-manieth structure only.")] = 1,
    rho: Annotated[str, typer.Option(help="Several to compare: scalar, species, or numbers.")] = "scalar",
    part: Annotated[int, typer.Option(help="lmfp: the fifth that is held out.")] = 0,
) -> None:
    """Errors on the folds for one setting."""
    torch.set_num_threads(1)
    sizes = sorted(int(m) for m in points.split(","))
    config = configuration(case, settings or [], sizes[-1])
    if case == "lmfp":
        training, folds = lmfp(part)
    elif data is None:
        raise typer.BadParameter(f"{case} needs --data")
    elif case == "silicon":
        training, folds = silicon(data, every)
    elif case == "joint":
        training, folds = acac_joint(data, n)
    else:
        training, folds = acac_tenth(data) if fifth else acac(data, n)
    console = Console()
    found = scores(training, folds, config, sizes, rho.split(","))
    console.print(table(found, f"{case}: {' '.join(settings or ['as the preset'])}"))
    console.print(
        f"trained on {len(training)} frames; held out: {', '.join(f'{k} {len(v)}' for k, v in folds.items())}"
    )


def configuration(case: str, settings: list[str], n_inducing: int) -> FitConfig:
    """The preset of the case with settings over it."""
    start = {**STARTS[case], "device": "cpu"}
    nested: dict[str, Any] = {}
    for setting in settings:
        name, value = setting.split("=", 1)
        section, *rest = name.split(".")
        if section in ("pair", "baselines") and not rest:
            nested[section] = typer_value(value)
    config = FitConfig(**start, **nested)
    dotted = {s.split("=", 1)[0]: typer_value(s.split("=", 1)[1]) for s in settings if s.split("=")[0] not in nested}
    return with_settings(config, {**dotted, "model.n_inducing": n_inducing})


def typer_value(text: str) -> Any:
    """A value as YAML has it."""
    import yaml

    return yaml.safe_load(text)


def acac(data: Path, n: int, n_cold: int = 40, n_hot: int = 30) -> tuple[FrameSet, Folds]:
    """PBE molecules of the training set by energy: the highest, others, and n that train."""
    frames = read_frames({"pbe": [data / "isolated_atoms_pbe.extxyz", data / "train_300K_pbe.extxyz"]})
    atoms = [f for f in frames if f.isolated_atom]
    molecules = sorted((f for f in frames if not f.isolated_atom), key=lambda f: f.energy or 0.0)
    rest = molecules[:-n_hot]
    order = np.random.default_rng(0).permutation(len(rest))
    cold, chosen = [rest[i] for i in order[:n_cold]], [rest[i] for i in order[n_cold : n_cold + n]]
    return FrameSet(("pbe",), (*atoms, *chosen)), {"cold": cold, "hot": molecules[-n_hot:]}


def acac_tenth(data: Path) -> tuple[FrameSet, Folds]:
    """The split of benchmarks/acac.py --folds, PBE alone: every fifth molecule is left out, half of those are scored."""
    frames = read_frames({"pbe": [data / "isolated_atoms_pbe.extxyz", data / "train_300K_pbe.extxyz"]})
    atoms = [f for f in frames if f.isolated_atom]
    molecules = [f for f in frames if not f.isolated_atom]
    chosen = [f for i, f in enumerate(molecules) if i % 5 != 4]
    return FrameSet(("pbe",), (*atoms, *chosen)), {"fold": molecules[4::10]}


def acac_joint(data: Path, n: int) -> tuple[FrameSet, Folds]:
    """As `acac_tenth`, with GFN1-xTB below and every so-manieth PBE molecule so that n train."""
    top, folds = acac_tenth(data)
    low = read_frames({"gfn1": [data / "isolated_atoms_gfn1.extxyz", data / "train_300K_gfn1.extxyz"]})
    atoms, molecules = ([f for f in low if f.isolated_atom is alone] for alone in (True, False))
    own = [f for f in top if f.isolated_atom], [f for f in top if not f.isolated_atom]
    lower = (*atoms, *(f for i, f in enumerate(molecules) if i % 5 != 4))
    return FrameSet(("gfn1", "pbe"), (*lower, *own[0], *own[1][:: len(own[1]) // n][:n])), folds


def silicon(data: Path, every: int) -> tuple[FrameSet, Folds]:
    """Every fourth training structure is held out, as with benchmarks/mlearn_si.py --folds."""
    frames = list(read_frames({"pbe": [data / "training.extxyz"]}))
    chosen = [f for i, f in enumerate(frames) if i % 4 != 3]
    return FrameSet(("pbe",), tuple(chosen[::every])), {"fold": frames[3::4][::every]}


def lmfp(part: int) -> tuple[FrameSet, Folds]:
    """All nm structures and four fifths of the mag ones."""
    frames = read_frames({level: load_lmfp(level, "train") for level in ("nm", "mag")}).training()
    top = frames.of("mag")
    chosen = [f for i, f in enumerate(top) if i % 5 != part]
    return FrameSet(("nm", "mag"), (*frames.of("nm"), *chosen)), {"fold": top[part::5]}


def scores(
    training: FrameSet, folds: Folds, config: FitConfig, sizes: list[int], rhos: list[str]
) -> list[dict[str, Any]]:
    """Errors on the folds at every number of inducing points, for every rho."""
    start = time.process_time()
    with bars() as report:
        features = Features.build(training, config, report)
        baselines = make_baselines(config.baselines, None, training.levels)
        columns, column_std = build_columns(training, features.basis.species, config, baselines)
        data = training_data(training, features, columns, baselines, config, report)
        rows = {name: [design(f, features, columns, baselines) for f in fold] for name, fold in folds.items()}
    out = []
    for m in sorted({min(m, features.basis.size) for m in sizes}):
        index, extra = (
            torch.nonzero(features.basis.rank < m).squeeze(1),
            torch.arange(features.basis.size, data.statistics.size),
        )
        chosen = torch.cat([index, extra])
        for rho in rhos:
            model = ModelConfig(**{**config.model.model_dump(), "rho": rho if rho.isalpha() else {"fixed": float(rho)}})
            chosen_config = config.model_copy(update={"model": model})
            weights, learned = solve(
                prefix(features.basis, m), data.subset(chosen), column_std, training, chosen_config
            )
            row = {"M": m, "D": features.soap.n_features, **learned}
            for name, fold in folds.items():
                row[name] = errors(fold, [(a[:, chosen], mean) for a, mean in rows[name]], weights)
            out.append({**row, "cpu": time.process_time() - start})
    return out


def prefix(basis: InducingBasis, m: int) -> InducingBasis:
    """The basis that a selection of m points would have given."""
    keep = basis.rank < m
    masks = [keep[columns] for _, columns in basis.blocks()]
    points = tuple(p[mask] for p, mask in zip(basis.points, masks, strict=True))
    factors = tuple(f[mask][:, mask] for f, mask in zip(basis.factors, masks, strict=True))
    return InducingBasis(basis.species, points, factors, basis.rank[keep], basis.zeta, basis.jitter)


def design(frame: Frame, features: Features, columns: Columns, baselines: list[Any]) -> tuple[Tensor, Tensor]:
    """All functionals of a structure in terms of the weights, and their prior mean at the highest level."""
    phi, extra = features.rows(frame.atoms), columns.rows_of(frame.atoms, [b.labels(frame.atoms) for b in baselines])
    return torch.cat([phi, extra], dim=1), columns.mean(extra, len(columns.reference) - 1)


def solve(
    basis: InducingBasis, data: TrainingData, column_std: Tensor, training: FrameSet, config: FitConfig
) -> tuple[Tensor, dict[str, Any]]:
    """Weights of the highest level, and what was learned."""
    prior = make_prior(training.levels, basis, config.model.rho)
    noise = make_noise(training.levels, config)
    learn(prior, noise, data, basis, column_std, config)
    with torch.no_grad():
        d = block_scales(prior.rho, prior.scale, basis.species_index(), column_std)
        joint = Posterior(data.statistics, Chain.of(d), inverse_variances(noise, data.statistics, d))
    rho = ", ".join(f"{x:.2f}" for x in prior.rho_parameter.flatten().tolist())
    weights = uncentred(joint.level_means()[-1], mean_features(basis))
    return weights, {"noise": 1e3 * float(noise.noise[-1, 1].detach()), "rho": rho}


def errors(fold: list[Frame], rows: list[tuple[Tensor, Tensor]], weights: Tensor) -> str:
    """RMSE and MAE of forces (meV/Å), then of energies (meV/atom)."""
    energy, forces = [], []
    for frame, (a, mean) in zip(fold, rows, strict=True):
        found = (a @ weights + mean).numpy()
        assert frame.energy is not None
        assert frame.forces is not None
        energy.append((found[0] - frame.energy) / len(frame.atoms))
        forces.append(found[1:-6] - frame.forces.ravel())
    parts = []
    for values in (np.concatenate(forces), np.array(energy)):
        parts.append(f"{1e3 * np.sqrt(np.mean(values**2)):.2f} / {1e3 * np.abs(values).mean():.2f}")
    return ", ".join(parts)


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """One row for each number of inducing points."""
    out = Table(title=f"{title}\nRMSE / MAE of forces in meV/Å, then of energies in meV/atom")
    for name in rows[0]:
        out.add_column(name, justify="right")
    for row in rows:
        out.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    return out


if __name__ == "__main__":
    typer.run(main)
