"""Labels from outside: contradictions are refused or take the place of what was there, other units are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from campaign_systems import traced
from command_line import ok, refused
from conftest import alloy, label
from test_campaign import client, folder, in_process, rows, run, start, with_a_fit  # noqa: F401 (fixtures)

from mfgp import ConfigError, DataError, MultiFidelityGP
from mfgp.campaign import Campaign

BOHR_FORCE = 51.4220675  # eV/Å of a Hartree/Bohr


def add(folder: Path, *labels: Atoms, **options: Any) -> int:  # noqa: F811
    with Campaign.open(folder / "run", {"low": traced}) as campaign:
        return campaign.add(list(labels), **options)


def shifted(atoms: Atoms, level: str, by: float = 0.05) -> Atoms:
    """A label whose energy is off by eV."""
    out = label(atoms, level)
    out.info["REF_energy"] += by
    return out


def predicted(folder: Path, atoms: Atoms) -> float:  # noqa: F811
    with Campaign.open(folder / "run", {"low": traced}) as campaign:
        return float(campaign.model().predict(atoms, "high").energy)


@pytest.mark.usefixtures("in_process")
def test_another_label_of_a_structure_is_refused_or_takes_the_place(
    folder: Path,  # noqa: F811
    two_levels: Any,
    config: Any,
) -> None:
    with_a_fit(folder, two_levels, config, stop={"steps": 1})
    start(folder)
    first, second = alloy(301), alloy(302)
    wrong = shifted(first, "high", 0.3)
    assert add(folder, wrong, label(second, "high")) == 2
    run(folder)  # learned, by an update
    rounded = label(second, "high")
    rounded.positions = np.round(rounded.positions, 6)
    rounded.info["REF_energy"] = round(rounded.info["REF_energy"], 6)
    with pytest.raises(
        DataError, match=r"1 of 2 labels are of structures that have another .* label \d+ \(added\) has"
    ):
        add(folder, label(first, "high"), rounded)
    with pytest.raises(DataError, match=r"one structure .* with different labels at high"):
        add(folder, label(alloy(303), "high"), shifted(alloy(303), "high"), replace=True)
    with pytest.warns(UserWarning, match="1 frames are of calculations that the model has already"):
        assert add(folder, label(first, "high"), rounded, replace=True) == 1
    old = "SELECT accepted, learned_in, why FROM labels WHERE accepted = 0"
    assert rows(folder, old)[0][:2] == (0, 1)
    assert "replaced by label" in rows(folder, old)[0][2]
    before = predicted(folder, first)
    run(folder)  # the step is done, but what was replaced is forgotten
    assert rows(folder, "SELECT kind FROM models ORDER BY version") == [
        ("initial",),
        ("update",),
        ("update",),
        ("refit",),
    ]
    assert rows(folder, old)[0][1] is None
    n = len(two_levels.training()) + 4  # two added, two computed
    assert rows(folder, "SELECT n_labels FROM models WHERE kind = 'refit'") == [(n,)]
    assert before - predicted(folder, first) > 0.05  # eV, towards the right label
    own = "FROM labels WHERE level = 'high' AND origin = 'added'"
    assert rows(folder, f"SELECT count(DISTINCT structure), count(*) {own}") == [(2, 3)]
    assert add(folder, wrong, replace=True) == 1  # the user's mind may change: the old row is accepted again
    assert "replaced by" in rows(folder, old)[0][2]
    assert rows(folder, f"SELECT count(*) {own}") == [(3,)]


@pytest.mark.usefixtures("in_process")
def test_without_a_fit_only_what_was_not_learned_is_replaced(folder: Path) -> None:  # noqa: F811
    start(folder)
    atoms = alloy(304)
    assert add(folder, shifted(atoms, "high")) == 1
    assert add(folder, label(atoms, "high"), replace=True) == 1
    assert rows(folder, "SELECT accepted FROM labels ORDER BY id") == [(0,), (1,)]
    run(folder, max_steps=1)
    assert rows(folder, "SELECT kind FROM models") == [("initial",), ("update",), ("update",)]
    with pytest.raises(ConfigError, match=r"1 labels to replace have been learned.*began with `model`, not with `fit`"):
        add(folder, shifted(atoms, "high"), replace=True)
    assert rows(folder, "SELECT count(*) FROM labels WHERE origin = 'added'") == [(2,)]


@pytest.mark.usefixtures("in_process")
def test_a_failing_fit_keeps_what_is_to_be_forgotten(
    folder: Path,  # noqa: F811
    two_levels: Any,
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_a_fit(folder, two_levels, config, stop={"steps": 1})
    start(folder)
    assert add(folder, shifted(alloy(0), "high"), replace=True) == 1  # a label of the fit's data

    def failing(*args: Any, **kwargs: Any) -> MultiFidelityGP:
        raise DataError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(MultiFidelityGP, "fit", failing)
        with pytest.raises(DataError, match=r"1 labels that the model learned were replaced.*no memory left"):
            run(folder)
    assert rows(folder, "SELECT kind FROM models") == [("initial",)]
    run(folder)
    assert rows(folder, "SELECT kind, n_labels FROM models ORDER BY version")[1] == ("refit", 17)


def test_other_units_are_told_and_taken_in(folder: Path) -> None:  # noqa: F811
    start(folder)
    hartree = [label(alloy(310 + i), "high") for i in range(2)]
    for atoms in hartree:
        atoms.info["REF_energy"] /= 27.211386
        atoms.arrays["REF_forces"] /= BOHR_FORCE
    with pytest.warns(UserWarning, match="the model expects") as told:
        assert add(folder, *hartree) == 2
    texts = [str(w.message) for w in told]
    assert "2 of 2 new energies are far from what the model expects" in texts[0]
    assert "as those in Hartree/Bohr are" in texts[1]
    assert all("campaign add --replace" in text for text in texts)


def test_isolated_atoms_that_the_fit_did_not_have_are_told(folder: Path) -> None:  # noqa: F811
    start(folder)
    gold = Atoms("Au", info={"REF_energy": 2.0, "config_type": "IsolatedAtom", "fidelity": "high"})
    with pytest.warns(UserWarning, match="isolated atoms of Au: the fit had none"):
        assert add(folder, gold) == 1


@pytest.mark.filterwarnings("default:1 of 1 frames are held out")
def test_commands_say_why_nothing_happens(folder: Path) -> None:  # noqa: F811
    start(folder)
    path = folder / "campaign.yaml"
    path.write_text(path.read_text().replace("hours: 0.01", "hours: 0.01\n    calculator: emt"))
    (folder / "run" / "campaign.yaml").write_text(path.read_text())
    where, file = ("-d", folder / "run"), folder / "labels.extxyz"
    file.write_text("precious")
    assert "has no labels of its own to write" in refused("campaign", "export", *where, "-o", file)
    assert "has no labels rejected to write" in refused("campaign", "export", *where, "-o", file, "--rejected")
    assert file.read_text() == "precious"
    held_out = label(alloy(320), "high")
    held_out.info["split"] = "test"
    write(file, held_out)
    told = ok("campaign", "add", file, *where)
    assert "0 new labels taken in\n" in told.output
    assert "1 of 1 frames are held out" in told.stderr.replace("\n", " ")
    write(file, shifted(alloy(320), "high"))
    assert "1 new labels" in ok("campaign", "add", file, *where).output
    write(file, label(alloy(320), "high"))
    assert "give --replace" in refused("campaign", "add", file, *where).replace("\n", " ")
    assert "1 new labels" in ok("campaign", "add", file, "--replace", *where).output
