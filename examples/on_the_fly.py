"""Learning on the fly: molecular dynamics of LiMnPO4/LiFePO4 that calls GFN1-xTB (tblite) where the model is unsure.

    python examples/on_the_fly.py --out out/on_the_fly          # needs tblite: pip install -e '.[bench]'

A model of a few structures runs the dynamics; the table says what each call found and what the model had said of it. At the
end the same model, with what it learned, and the first one are compared with GFN1-xTB on frames of the run that neither has
seen.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from tblite.ase import TBLite

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.active import OnTheFly
from mfgp.base.console import stdout, table
from mfgp.base.progress import bars
from mfgp.datasets import load_lmfp

console = stdout()


def main(
    out: Annotated[Path, typer.Option(help="Where log, labels and plot go.")] = Path("out/on_the_fly"),
    steps: Annotated[int, typer.Option(help="Steps of 2 fs.")] = 200,
    temperature: Annotated[float, typer.Option(help="In K.")] = 600.0,
    threshold: Annotated[float, typer.Option(help="Largest std of a force component, eV/Å.")] = 1.0,
    n_start: Annotated[int, typer.Option(help="Structures of the first model.")] = 20,
    n_inducing: Annotated[int, typer.Option(help="Inducing points.")] = 600,
    n_test: Annotated[int, typer.Option(help="Frames of the run that are calculated at the end.")] = 10,
) -> None:
    """Run the dynamics and say what the calls bought."""
    if (out / "log.jsonl").exists():
        raise typer.BadParameter(f"{out} holds an earlier run; name another folder.", param_hint="--out")
    gfn1 = load_lmfp("gfn1")
    chosen = np.random.default_rng(0).permutation(len(gfn1))
    frames = read_frames({"gfn1": [gfn1[i] for i in chosen[:n_start]]})
    config = FitConfig(preset="oxide", model={"n_inducing": n_inducing}, training={"n_optimise": 300})
    first = MultiFidelityGP.fit(frames, config)
    out.mkdir(parents=True, exist_ok=True)
    first.save(out / "first.mfgp")
    model = MultiFidelityGP.load(out / "first.mfgp")  # this one learns
    tight_binding = TBLite(method="GFN1-xTB", verbosity=0)
    otf = OnTheFly(model, {"gfn1": tight_binding}, threshold, directory=out, frames=frames, refit_every=5)

    atoms = gfn1[chosen[n_start]].copy()
    atoms.calc = otf.calculator
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
    Stationary(atoms)
    dynamics = Langevin(atoms, 2 * units.fs, temperature_K=temperature, friction=0.01 / units.fs, rng=rng, fixcm=False)
    seen: list[Atoms] = []
    otf.attach(dynamics)
    dynamics.attach(lambda: seen.append(atoms.copy()))
    with bars() as report, warnings.catch_warnings():
        warnings.simplefilter("always")
        dynamics.attach(lambda: report("dynamics", len(seen), steps + 1, f"{len(otf.calls)} calls"))
        dynamics.run(steps)

    columns = ("step", "largest std before", "after", "force RMSE", "std given", "in 95 %")
    rows = [
        (str(c["step"]), *(f"{1e3 * c[k]:.0f}" for k in ("std", "std_after", "force_rmse", "force_std")),
         f"{100 * c['in95']:.0f} %")
        for c in otf.calls if c["outcome"] == "done"
    ]  # fmt: skip
    console.print(table(f"{len(otf.calls)} calls in {steps} steps (meV/Å)", columns, rows))
    called = {c["step"] for c in otf.calls}
    unseen = [a for i, a in enumerate(seen) if i not in called]
    test = [unseen[i] for i in np.linspace(0, len(unseen) - 1, n_test).astype(int)]
    errors = {"first model": [], "with what it learned": []}  # type: dict[str, list[np.ndarray]]
    for a in test:
        forces = tight_binding.get_property("forces", a)
        errors["first model"].append(first.predictor()(a, "none").forces - forces)
        errors["with what it learned"].append(otf.model.predictor()(a, "none").forces - forces)
    for name, e in errors.items():
        console.print(
            f"{name}: force RMSE {1e3 * np.sqrt(np.mean(np.square(e))):.0f} meV/Å on {n_test} frames of the run"
        )
    console.print(f"plot {otf.plot()}, log and labels in {out}")


if __name__ == "__main__":
    typer.run(main)
