"""The architecture: lower modules never import higher ones, and descriptors never import mfgp."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up. A module may import those above it in this list, not those below.
LAYERS = [
    *("errors", "files", "progress", "threads", "units"),
    *("held_atoms", "label_values", "labels", "reading", "sources", "label_warnings", "frames", "datasets", "scores"),
    *(
        "config_errors",
        "yaml_files",
        "config",
        "zbl",
        "single_point",
        "same_structure",
        "trajectories",
        "baselines",
        "baseline_checks",
        "costs",
    ),
    *(
        "doctor_report",
        "doctor_composition",
        "doctor_lengths",
        "doctor_labels",
        "doctor_moments",
        "doctor_levels",
        "doctor_paths",
        "doctor",
    ),
    *(
        "kernels",
        "inducing",
        "statistics",
        "centring",
        "pair_term",
        "vacuum_term",
        "row_sums",
        "rows",
        "observations",
        "site_moments",
        "autoregressive",
        "hyperparameters",
        "objectives",
        "training",
    ),
    *(
        "devices",
        "primitive",
        "features",
        "training_frames",
        "accumulation",
        "fitting",
        "distributed",
        "level_shares",
        "residual",
        "reduction",
        "means",
        "local_variances",
        "energy_variances",
        "prediction",
        "offsets",
        "predictor",
        "batched",
        "combinations",
        "leave_one_out",
        "leave_relatives_out",
        "novelty",
        "composition_scatter",
        "calibration",
        "calibration_fit",
        "moment_calibration",
        "calculator",
        "surprises",
        "calibrating",
        "learned",
        "training_residuals",
        "contradictions",
        "stress_order",
        "fit_notes",
        "model",
        "model_upgrades",
        "model_file",
        "compression",
        "tuning",
    ),
    *("directional", "targets", "gains", "candidates", "selection", "plan"),
    *("campaign_config", "campaign_calculators", "structure_json", "campaign_records", "campaign_schema", "labelling"),
    "campaign_database",
    "calculation_process",
    *(
        "campaign_store",
        "campaign_inputs",
        "campaign_failures",
        "campaign_workers",
        "campaign_tasks",
        "campaign_learning",
        "campaign_adding",
    ),
    *("campaign_start", "campaign"),
    *(
        "evaluation",
        "doctor_fit",
        "doctor_suspects",
        "doctor_rounds",
        "learning_curve",
        "rates",
        "estimate",
        "report",
        "console",
        "selection_report",
        "active_plot",
        "active",
        "campaign_status",
        "campaign_report",
        "command_line",
        "cli_doctor",
        "cli_predict",
        "cli_select",
        "cli_tune",
        "cli_campaign",
        "cli",
    ),
]


def imports(path: Path) -> set[str]:
    """Modules imported at the top of a file; what is imported for type checking only, or inside a function, aside."""
    out: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return out


def test_every_module_has_its_place() -> None:
    found = {p.stem for p in (ROOT / "mfgp").glob("*.py")} - {"__init__"}
    assert found == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_lower_never_imports_higher(name: str) -> None:
    above = {f"mfgp.{other}" for other in LAYERS[LAYERS.index(name) + 1 :]}
    assert not imports(ROOT / "mfgp" / f"{name}.py") & above


def test_descriptors_stand_alone() -> None:
    for path in (ROOT / "descriptors").glob("*.py"):
        assert not any(m.split(".")[0] == "mfgp" for m in imports(path)), path.name


def test_files_stay_readable() -> None:
    sizes = {
        p.name: p.read_text().count("\n") for folder in ("mfgp", "descriptors") for p in (ROOT / folder).glob("*.py")
    }
    assert not {name: n for name, n in sizes.items() if n > 360}
