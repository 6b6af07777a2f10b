"""The architecture: lower modules never import higher ones, and descriptors never import mfgp."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _in(folder: str, names: str) -> list[str]:
    return [f"{folder}.{name}".strip(".") for name in names.split()]


# From the bottom up: folders of mfgp, and in each its modules; "" is mfgp itself, what a user imports. A module may import
# those above it in this list, not those below.
LAYERS = [
    *_in("", "errors"),
    *_in("base", "extxyz_limits files progress threads units words console config_errors yaml_files devices"),
    *_in("data", "transposed_cells structure_warnings held_atoms label_values labels reading sources label_warnings"),
    *_in("", "frames datasets config"),
    *_in(
        "data",
        "scored_frames closest_pairs single_point same_structure trajectories training_frames costs structure_json",
    ),
    *_in("baselines", "zbl coulomb registry columns checks"),
    *_in(
        "gp",
        "kernels inducing statistics centring pair_term vacuum_term row_sums rows observations functionals site_moments "
        "autoregressive levels evidence hyperparameters objectives training",
    ),
    *_in("fit", "primitive features accumulation fitting learned"),
    *_in("", "distributed"),
    *_in(
        "predict",
        "weights_variances level_shares residual reduction means local_variances energy_variances prediction offsets "
        "predictor batched energy_steps combinations",
    ),
    *_in(
        "calibration",
        "scores leave_one_out leave_relatives_out cell_widths novelty composition_scatter new_labels carried "
        "calibration factors moments left_out_warnings calibrating",
    ),
    *_in("", "evaluation"),
    *_in(
        "notes",
        "surprises training_residuals contradictions stress_order not_carried prequential narrow_intervals energy_shift "
        "far_structures fit_notes",
    ),
    *_in(
        "",
        "calculator model model_upgrades model_file compression tuning rates estimate learning_curve report",
    ),
    *_in("doctor", "report composition lengths labels moments levels paths checks cell_errors fit suspects rounds"),
    *_in("selection", "directional targets gains candidates greedy plan"),
    *_in(
        "campaign",
        "config calculators records schema labelling database calculation_process store inputs pool failures "
        "workers tasks learning adding start loop status report",
    ),
    *_in("", "active_plot active"),
    *_in("cli", "selection_report command_line doctor predict select tune campaign main"),
    *_in("", "__main__"),
]


FILES = {
    ".".join(p.relative_to(ROOT / "mfgp").with_suffix("").parts): p
    for p in (ROOT / "mfgp").rglob("*.py")
    if p.stem != "__init__"
}


def imports(path: Path) -> set[str]:
    """Modules imported at the top of a file; what is imported for type checking only, or inside a function, aside."""
    out: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return out


@pytest.mark.parametrize("name", LAYERS)
def test_no_module_is_hidden_by_a_name_of_its_folder(name: str) -> None:
    """What a folder imports for its users must not be called as one of its modules."""
    module = importlib.import_module(f"mfgp.{name}")
    folder, _, own = f"mfgp.{name}".rpartition(".")
    assert getattr(importlib.import_module(folder), own) is module


def test_every_module_has_its_place() -> None:
    assert set(FILES) == set(LAYERS)


# What an import of a folder itself imports.
FOLDERS = {
    f"mfgp.{p.parent.name}": {f"mfgp.{name}" for name in LAYERS if f"from mfgp.{name} import" in p.read_text()}
    for p in (ROOT / "mfgp").glob("*/__init__.py")
}


@pytest.mark.parametrize("name", LAYERS)
def test_lower_never_imports_higher(name: str) -> None:
    above = {f"mfgp.{other}" for other in LAYERS[LAYERS.index(name) + 1 :]}
    own = imports(FILES[name])
    assert not own & above
    assert not set().union(*(FOLDERS[folder] for folder in own & set(FOLDERS))) & above


def test_descriptors_stand_alone() -> None:
    for path in (ROOT / "descriptors").glob("*.py"):
        assert not any(m.split(".")[0] == "mfgp" for m in imports(path)), path.name


def test_files_stay_readable() -> None:
    files = [*FILES.values(), *(ROOT / "descriptors").glob("*.py")]
    sizes = {str(p.relative_to(ROOT)): p.read_text().count("\n") for p in files}
    assert not {name: n for name, n in sizes.items() if n > 360}
