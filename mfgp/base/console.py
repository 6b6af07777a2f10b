"""Tables and lines of the command line. Nothing here computes; importing it costs no torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mfgp.calibration.scores import Scores
    from mfgp.doctor.report import Correlation, Report
    from mfgp.estimate import Estimate
    from mfgp.evaluation import Evaluation
    from mfgp.notes.training_residuals import Residual

PIPE_WIDTH = 120  # columns where no terminal says how many there are


def write_what_can_be() -> None:
    """Let the standard streams write ? for characters that their encoding does not have (ASCII has no Å), not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def stdout() -> Console:
    """Console for results."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def stderr() -> Console:
    """Console for notices, progress and errors."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else PIPE_WIDTH, highlight=False)


def say(console: Console, text: str, style: str = "") -> None:
    """One message as it is: no markup, no hard wrapping, so that a path in it can be copied."""
    console.print(Text(text, style=style), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    out = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    out.min_width = len(title)  # a title wraps at the width of its table
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        out.add_row(*(Text(cell) for cell in row))
    return out


def explained(table: Table, note: str) -> Group:
    """A table with a note under it that explains its words."""
    return Group(table, Text(note, style="dim"))


def data_table(summary: Mapping[str, Mapping[str, int]], levels: Sequence[str]) -> Table:
    """What every level brings, of `FrameSet.summary` or of a model's header."""
    names = ["frames", "atoms", "energies", "forces", "stresses"]
    if any(counts.get("held_out") for counts in summary.values()):
        names.append("held_out")
    rows = [(level, *(str(summary[level].get(name, 0)) for name in names)) for level in levels]
    columns = ["level", *(name.replace("held_out", "held out") for name in names)]
    return table("data, cheapest level first (labels: in how many frames)", columns, rows)


def hyperparameter_tables(values: Mapping[str, Any], levels: Sequence[str]) -> list[RenderableType]:
    """Tables of `MultiFidelityGP.hyperparameters()`: amplitudes and noises, rho, e0, coefficients of baselines.

    levels: cheapest first; a model file does not keep the order of its dictionaries.
    """
    kinds = [k for k in _KINDS if any(k in values["noise"][level] for level in levels)]
    columns = ("level", "amplitude s (eV)", *(_KINDS[k] for k in kinds))
    rows = [
        (level, f"{values['outputscale'][level] ** 0.5:.4g}", *(_milli(values["noise"][level].get(k)) for k in kinds))
        for level in levels
    ]
    out: list[RenderableType] = [explained(table("hyperparameters", columns, rows), _NOISE_NOTE)]
    if values["rho"]:
        out.append(_rho_table(values["rho"], levels))
    out.append(_by_level("e0 (eV)", values["e0"], levels, _by_number(values["e0"][levels[0]]), ".4f"))
    baselines = values.get("baselines", {})
    if any(baselines.values()):
        out.append(_by_level("baseline coefficients", baselines, levels, list(baselines[levels[0]]), ".3f"))
    return out


_KINDS = {
    "energy": "energy noise (meV/√atom)",
    "forces": "force noise (meV/Å)",
    "virial": "virial noise (meV/√atom)",
}
_NOISE_NOTE = (
    "amplitude: of what a level adds to the one below; noise: what of the labels the model takes for noise, its own misfit "
    "included (of a total energy of N atoms: √N times it)"
)


def _rho_table(rho: Sequence[Mapping[str, float]], levels: Sequence[str]) -> Table:
    """How much of a level the next one takes over; one column where it is the same for all elements."""
    symbols = _by_number(rho[0])
    scalar = all(len(set(step.values())) == 1 for step in rho)
    steps = [f"{low} → {high}" for low, high in pairwise(levels)]
    rows = [
        (name, *(f"{step[s]:.3f}" for s in (symbols[:1] if scalar else symbols)))
        for name, step in zip(steps, rho, strict=True)
    ]
    if scalar:
        return table("rho, one for all elements", ("step", "rho"), rows)
    return table("rho by central species", ("step", *symbols), rows)


def _by_level(
    title: str, values: Mapping[str, Mapping[str, float]], levels: Sequence[str], names: Sequence[str], form: str
) -> Table:
    rows = [(level, *(f"{values[level][name]:{form}}" for name in names)) for level in levels]
    return table(title, ("level", *names), rows)


def _by_number(symbols: Iterable[str]) -> list[str]:
    return sorted(symbols, key=chemical_symbols.index)


def _milli(value: float | None) -> str:
    return "–" if value is None else _short(1e3 * value)


def _short(value: float) -> str:
    """Three digits, and no exponent for thousands."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def residual_table(residuals: Iterable[Residual]) -> RenderableType:
    """Labels, what the model leaves of them on its training data, and the noise it learned, in the same unit."""
    columns = ("level", "labels", "rows", "rms about e0", "rms residual", "noise", "unit")
    rows = []
    for r in residuals:
        kind = {"given": "with own sigma", "isolated": "isolated atoms"}.get(r.kind, r.kind)
        scale, unit = (1.0, "σ") if kind != r.kind else (1e3, "meV/Å" if r.kind == "forces" else "meV/√atom")
        rows.append((r.level, kind, str(r.count), *(_short(scale * v) for v in (r.labels, r.residual, r.noise)), unit))
    note = (
        "root mean squares of the training labels: about e0 (and baselines) alone, and of what the model leaves of them"
    )
    return explained(table("training residuals", columns, rows), note)


def calibration_table(calibration: Mapping[str, Any], levels: Sequence[str]) -> RenderableType:
    """Factors of the standard deviations by property, and what they do to the 95 % interval of left-out labels."""
    columns = ("level", "labels", "structures", "weights x", "residual x", "noise x", "in 95 % before", "after")
    rows = []
    for f in calibration["fitted"]:
        kind = f"{f['kind']} on {f['species']}" if f["species"] else f["kind"]
        factors = (f"{f['scale'][name] ** 0.5:.2f}" for name in ("weights", "residual", "noise"))
        coverages = (f"{100 * f[name]:.1f} %" for name in ("coverage_before", "coverage_after"))
        rows.append((f["level"], kind, str(f["structures"]), *factors, *coverages))
    notes = [_CALIBRATION_NOTE, *scattering(calibration, levels)]
    return explained(table("calibration, structures left out", columns, rows), "\n".join(notes))


def scattering(calibration: Mapping[str, Any], levels: Sequence[str]) -> Iterator[str]:
    """Compositions whose energies or forces have wider or narrower standard deviations, by level."""
    from mfgp.calibration.composition_scatter import from_json

    for kind, name in (("energies", "energy_scatter"), ("forces", "force_scatter")):
        for level, data in zip(levels if calibration[name] else (), calibration[name], strict=True):
            if told := from_json(data).told():
                found = ", ".join(f"{formula} x {factor**0.5:.2f}" for formula, factor in told.items())
                yield f"standard deviations of {level} {kind} differ from these for some compositions: {found}"


_CALIBRATION_NOTE = (
    "x: factors of the three parts of a standard deviation (posterior of the weights; what the inducing points do not "
    "carry; label noise), one for all three of moments; in 95 %: share of left-out labels inside the 95 % interval, before "
    "and after these factors and novelty (without what differs by composition)"
)


def estimate_line(estimate: Estimate, resident: float | None = None) -> str:
    """Memory and time of a fit, and what they rest on. resident: bytes that the process holds already, counted in."""
    slowest = max(estimate.parts, key=lambda name: estimate.parts[name])
    memory = f"{human_bytes(estimate.memory_bytes)} of memory"
    if resident is not None:
        memory = (
            f"{human_bytes(resident + estimate.memory_bytes)} of memory ({human_bytes(resident)} that Python, its libraries "
            f"and the data take already, {human_bytes(estimate.memory_bytes)} for the fit)"
        )
    return (
        f"estimate: {memory}, {human_seconds(estimate.seconds)} (most of it: {slowest}); {estimate.n_features} features per "
        f"environment, {estimate.gemm_gflops:.0f} GFLOP/s measured"
    )


def human_bytes(count: float) -> str:
    """3.2e9 -> '3.2 GB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2g} {unit}" if count < 10 * size else f"{count / size:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"


def human_seconds(seconds: float) -> str:
    """200 -> '3 min'."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "under a second"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


FEW_ENERGIES = 400  # where chance moves the coverage by more than 2 %


def score_table(evaluation: Evaluation) -> RenderableType:
    """Scores of energies, forces and stress, and of the forces on each element."""
    columns = (
        "",
        "n",
        "MAE",
        "RMSE",
        "CRPS",
        "mean std",
        "unit",
        "in 50 %",
        "80 %",
        "95 %",
        "std z",
        "NLL",
        "Spearman",
    )
    rows = [
        _score_row("energy", evaluation.energy.scores, 1e3, "meV/atom"),
        _score_row("forces", evaluation.forces.scores, 1e3, "meV/Å"),
    ]
    by_species = evaluation.forces_by_species()
    if len(by_species) > 1:
        rows += [_score_row(f"  on {symbol}", s, 1e3, "meV/Å") for symbol, s in by_species.items()]
    if evaluation.stress is not None:
        rows.append(_score_row("stress", evaluation.stress.scores, 1e3, "meV/Å³"))
    moments = evaluation.magmoms_by_species().items()
    rows += [_score_row(f"moment of {symbol}", s, 1.0, "µB") for symbol, s in moments]
    title = f"{evaluation.fidelity}: {evaluation.n_structures} structures, {evaluation.n_atoms} atoms"
    return explained(table(title, columns, rows), _SCORE_NOTE + _by_chance(evaluation.energy.scores.n))


def _by_chance(n: int) -> str:
    """What a coverage of few energies can say."""
    if not 1 < n < FEW_ENERGIES:
        return ""
    from mfgp.calibration.scores import expected_inside

    low, high = expected_inside(n)
    shares = f"{100 * low / n:.0f} - {100 * high / n:.0f} %"
    return f". Of {n} energies, an honest 95 % interval holds {low} to {high} ({shares}), 19 times out of 20"


_SCORE_NOTE = (
    "n: labels; in p %: share of labels inside the p % interval (should be p); std z: of error / std (should be 1); "
    "CRPS, NLL (nats a label, in eV, Å and µB): lower is better; Spearman: rank correlation of |error| and std"
)


def _score_row(name: str, s: Scores, scale: float, unit: str) -> tuple[str, ...]:
    if s.n == 0:
        return (name, "0", *["–"] * 11)
    lengths = (_short(scale * v) for v in (s.mae, s.rmse, s.crps, s.sharpness))
    shares = (f"{100 * v:.1f} %" for v in (s.coverage50, s.coverage80, s.coverage95))
    rest = ("–" if math.isnan(v) else f"{v:.2f}" for v in (s.z_std, s.nll, s.spearman))
    return (name, str(s.n), *lengths, unit, *shares, *rest)


def header_lines(header: Mapping[str, Any]) -> list[str]:
    """What a model is, from the header of its file."""
    config = header["config"]
    d, model = config["descriptor"], config["model"]
    scaling = d["radial_scaling"]
    weighting = f"radial scaling r0 {scaling['r0']:g} Å, m {scaling['m']:g}" if scaling else "no radial scaling"
    shape = f"n_max {d['n_max']}, l_max {d['l_max']}, sigma {d['sigma']:g} Å, cutoff width {d['cutoff_width']:g} Å"
    contraction = "" if d["contraction"] is None else f", channels contracted to {d['contraction']:g} of the variance"
    rho = model["rho"] if isinstance(model["rho"], str) else f"fixed at {model['rho']['fixed']}"
    elements = ", ".join(chemical_symbols[z] for z in header["species"])
    training = header["training"]
    learned = (
        "as configured"
        if training is None
        else f"hyperparameters that maximise the {config['training'].get('objective', 'evidence')}, "
        f"{training['evidence']:.1f} nats"
    )
    return [
        f"levels       {' → '.join(header['levels'])} (cheapest first)",
        f"elements     {elements}",
        f"descriptor   SOAP, r_cut {d['r_cut']:g} Å, {shape}, {weighting}{contraction}",
        f"kernel       zeta {model['zeta']}, {header['n_inducing']} inducing points, rho {rho}",
        f"baselines    {', '.join(map(_with_settings, config['baselines'])) or 'none'}",
        f"learned      {learned}",
        f"versions     mfgp {header['mfgp_version']}, torch {header['torch_version']}, file schema {header['schema']}",
        f"data hash    {header['data_hash']}",
    ]


def _with_settings(baseline: Mapping[str, Any]) -> str:
    """Its name, and in brackets what its configuration sets."""
    settings = ", ".join(f"{name} {value}" for name, value in baseline["settings"].items())
    return f"{baseline['name']} ({settings})" if settings else str(baseline["name"])


def correlation_table(correlations: Iterable[Correlation]) -> Table:
    """How the forces of two levels agree on the structures they share."""
    columns = ("levels", "element", "atoms", "correlation", "slope")
    rows = [(f"{c.low} → {c.high}", c.element, str(c.n_atoms), f"{c.r:.3f}", f"{c.slope:.3f}") for c in correlations]
    return table("forces of two levels on shared structures", columns, rows)


def finding_lines(report: Report) -> list[tuple[str, str]]:
    """(line, style) of every finding, and the count at the end."""
    style = {"error": "red", "warning": "yellow", "info": ""}
    lines = [(f"{f.severity}: {f.check}: {f.message}", style[f.severity]) for f in report.findings]
    counts = {severity: len(report.of(severity)) for severity in ("error", "warning")}
    text = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in counts.items() if n)
    return [*lines, (text or "nothing wrong found", "bold" if text else "green")]
