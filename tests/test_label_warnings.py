"""Labels that a weight of 0 says are none, and the same labels at two levels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from conftest import alloy, label
from numpy.testing import assert_allclose

from mfgp.config import load_config
from mfgp.doctor import examine
from mfgp.errors import ConfigError, DataError
from mfgp.frames import FrameSet, read_frames, to_atoms


def weighted(i: int, **weights: float) -> Atoms:
    atoms = label(alloy(i), "low")
    atoms.info.update(weights)
    return atoms


def read_quietly(frames: object) -> FrameSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_frames({"low": frames})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("config_energy_weight", ("forces", "stress")),
        ("config_forces_weight", ("energy", "stress")),
        ("config_stress_weight", ("energy", "forces")),
        ("config_virials_weight", ("energy", "forces", "stress")),
        ("config_weight", ()),
    ],
)
def test_a_weight_of_zero_says_that_a_label_is_none(name: str, left: tuple[str, ...], tmp_path: Path) -> None:
    placeholder = weighted(0, **{name: 0.0})
    if name == "config_forces_weight":
        placeholder.arrays["REF_forces"][:] = np.nan
    write(tmp_path / "low.extxyz", [placeholder, weighted(1, **{name: 1.0})])
    none, whole = read_quietly(tmp_path / "low.extxyz")
    assert none.label_names == left
    assert whole.label_names == ("energy", "forces", "stress")
    assert name not in to_atoms(none).info  # a label that is given to it later on is one


@pytest.mark.parametrize("value", ["0,0", float("nan"), "none"])
def test_a_weight_that_is_no_number_is_an_error(value: object) -> None:
    """Taken for no weight, it would let a placeholder be learned."""
    with pytest.raises(DataError, match="config_energy_weight"):
        read_frames({"low": [weighted(0), weighted(1, config_energy_weight=value)]})


def test_virials_have_a_weight_of_their_own() -> None:
    atoms = weighted(0, config_virials_weight=0)
    stress = atoms.info.pop("REF_stress")
    atoms.info["REF_virial"] = -atoms.get_volume() * stress
    (frame,) = read_quietly([atoms])
    assert frame.stress is None
    atoms.info["config_virials_weight"] = 1
    (frame,) = read_quietly([atoms])
    assert_allclose(frame.stress, stress, rtol=0, atol=1e-12)


def test_labels_without_weight_are_counted_once() -> None:
    frames = [
        weighted(0, config_energy_weight=0.0),
        weighted(1, config_weight=0.0),
        weighted(2, config_energy_weight=1.0),
    ]
    expected = (
        r"energy of 2 frames, forces of 1 frames, stress of 1 frames \(list of Atoms frame 0 \(.*\) first\) have a "
    )
    with pytest.warns(UserWarning, match=expected + r"weight of 0 \(config_weight, config_energy_weight\)") as caught:
        found = read_frames({"low": frames})
    assert len(caught) == 1
    assert not [f for f in examine(found).findings if f.check == "keys"]


def test_other_weights_are_said_not_to_be_used() -> None:
    frames = [weighted(i, config_forces_weight=10.0, config_energy_weight=1.0) for i in range(3)]
    with pytest.warns(UserWarning, match="config_forces_weight of 3 frames: weights of a loss.*energy_sigma") as caught:
        (first, *_) = read_frames({"low": frames})
    assert len(caught) == 1
    assert first.label_names == ("energy", "forces", "stress")


def test_a_level_without_any_weight_is_an_error() -> None:
    with pytest.raises(DataError, match="its labels have a weight of 0"):
        read_quietly([weighted(i, config_weight=0.0) for i in range(2)])


def test_the_same_labels_at_two_levels_are_told() -> None:
    low, high = ([label(alloy(i), "low") for i in range(4)] for _ in range(2))
    for atoms in high:
        atoms.info["fidelity"] = "high"
    with pytest.warns(UserWarning, match="'low' and 'high' have the same energies.* for 4 structures") as caught:
        read_frames({"low": low, "high": high})
    assert len(caught) == 1
    for atoms in (*low, *high):
        del atoms.arrays["REF_forces"], atoms.info["REF_stress"]
    with pytest.warns(UserWarning, match="for 4 structures"):
        read_frames({"low": low, "high": high})


def test_isolated_atoms_may_be_shared_and_other_labels_too() -> None:
    atom = Atoms("Cu", info={"REF_energy": 3.5, "config_type": "IsolatedAtom"})
    low, high = [label(alloy(0), "low"), atom], [label(alloy(0), "high"), atom.copy()]
    assert len(read_frames({"low": low, "high": high})) == 4  # warnings are errors here


def test_a_file_named_for_two_levels_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", [label(alloy(0), "low")])
    (tmp_path / "link.extxyz").symlink_to(tmp_path / "a.extxyz")
    for other in ("a.extxyz", "./a.extxyz", "link.extxyz"):
        text = f"fidelities: [{{name: lo, train: [a.extxyz]}}, {{name: hi, train: [{other}]}}]"
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"fidelities.1.train: .* is named for 'hi' and for 'lo'"):
            load_config(tmp_path / "config.yaml")
