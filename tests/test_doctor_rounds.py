"""Large errors hide small ones until they are left out, and everything is fitted again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from conftest import alloy, label
from test_doctor_fit import CONFIG, data, suspects

from mfgp import FrameSet, MultiFidelityGP, read_frames
from mfgp.doctor.fit import LabelScore, label_scores
from mfgp.doctor.rounds import scores_without_suspects
from mfgp.doctor.suspects import other_moments
from mfgp.errors import NumericalError
from mfgp.fit.accumulation import accumulate
from mfgp.frames import Frame


def fitted(frames: dict[str, list[Atoms]]) -> tuple[MultiFidelityGP, FrameSet]:
    read = read_frames(frames)
    return MultiFidelityGP.fit(read, CONFIG, progress=False), read


def with_hidden_energy() -> dict[str, list[Atoms]]:
    """Three low frames hold labels of the high level, and the energy of another is off by 0.05 eV."""
    frames = data()
    for k in (30, 33, 36):
        frames["low"][k] = label(alloy(k, rattle=0.08), "high")
        frames["low"][k].info["fidelity"] = "low"
    frames["low"][7].info["REF_energy"] += 0.05
    return frames


def test_an_energy_that_large_errors_hide_is_found() -> None:
    model, read = fitted(with_hidden_energy())
    low, before = read.of("low"), model.weights.clone()
    scoring = scores_without_suspects(model, read)
    hidden = (low[7].source, "energy", None)
    wrong = {low[k].source for k in (30, 33, 36)}
    assert hidden not in suspects(scoring.first)
    assert hidden in suspects(scoring.scores)
    named = {source for source, *_ in suspects(scoring.scores)}
    assert wrong <= named
    assert len(named - wrong - {low[7].source}) <= 1  # of 56 frames
    assert {f.source for f in scoring.frames} >= wrong
    (finding,) = scoring.findings()
    assert f"{scoring.left_out} labels of {len(scoring.frames)} frames" in finding.message
    assert bool((model.weights == before).all())


def test_labels_left_out_of_a_fit_score_as_in_closed_form() -> None:
    """At fixed hyperparameters, in fixed columns: the deviation and its std are those of the leave-one-label-out formula."""
    fixed = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"optimise": False})})
    read = read_frames(data())
    model = MultiFidelityGP.fit(read, fixed, progress=False)
    frame, atom = read.of("high")[4], 2
    mask = frame.force_mask.copy()
    mask[atom] = False
    for left_out, kept in ((None, replace(frame, energy=None)), (atom, replace(frame, force_mask=mask))):
        others = FrameSet(read.levels, tuple(kept if f is frame else f for f in read))
        without = MultiFidelityGP.fit(others, fixed, features=model.features, progress=False)
        without.prior.load_state_dict(model.prior.state_dict())  # amplitudes start from the labels, too
        without.columns = model.columns  # and the centre of e0's prior is taken from the energies
        without.statistics = accumulate(others, model.features, model.columns, [], fixed.training.noise_energy)
        without.refresh()
        closed = of(label_scores(model, read), frame, left_out)
        again = of(label_scores(without, read, unseen={id(frame): frozenset([left_out])}), frame, left_out)
        np.testing.assert_allclose(again.deviation, closed.deviation, rtol=0, atol=1e-6)  # eV, eV/Å
        assert again.std == pytest.approx(closed.std, rel=1e-4)
        assert abs(closed.error) > 1e-4


def of(scores: list[LabelScore], frame: Frame, atom: int | None) -> LabelScore:
    (found,) = [s for s in scores if s.frame is frame and s.place == atom]
    return found


def test_good_labels_are_scored_once() -> None:
    model, read = fitted(data())
    scoring = scores_without_suspects(model, read)
    assert not suspects(scoring.first)
    assert scoring.scores is scoring.first
    assert not scoring.findings()
    assert len(scoring.scores) == len(scoring.first)


def test_nothing_is_fitted_again_without_all_of_the_data() -> None:
    model, read = fitted(with_hidden_energy())
    some = FrameSet(read.levels, read.frames[:-1])
    scoring = scores_without_suspects(model, some)
    assert scoring.scores is scoring.first
    assert suspects(scoring.scores)
    (finding,) = scoring.findings()
    assert "not the model's training data to the last digit" in finding.message


def test_a_level_is_not_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more than MOST of a level would be left out, the scores say nothing about which are the good ones."""
    model, read = fitted(with_hidden_energy())
    monkeypatch.setattr("mfgp.doctor.rounds.MOST", 0.01)
    scoring = scores_without_suspects(model, read)
    assert scoring.left_out == 0
    (finding,) = scoring.findings()
    assert "in more than 1 % of the frames of a level" in finding.message


def test_the_last_own_sigma_of_a_level_can_be_left_out() -> None:
    frames = data()
    frames["high"][4].info["energy_sigma"], frames["high"][4].info["force_sigma"] = 0.01, 0.05
    frames["high"][4].info["REF_energy"] += 2.0
    frames["high"][4].arrays["REF_forces"] *= -1
    model, read = fitted(frames)
    scoring = scores_without_suspects(model, read)
    source = read.of("high")[4].source
    assert (source, "energy", None) in suspects(scoring.scores)
    assert source in {f.source for f in scoring.frames}


def test_moments_of_frames_that_are_left_out_stay_in() -> None:
    """Else they would be scored as if they were trained on."""
    frames = data()
    for atoms in frames["high"]:
        atoms.set_array("REF_magmoms", np.where(atoms.numbers == 29, 4.0 + 0.02 * (atoms.positions[:, 0] > 2.0), 0.01))
    odd = frames["high"][11]
    odd.arrays["REF_magmoms"] = odd.arrays["REF_magmoms"] + 1.0
    odd.arrays["REF_forces"] = -odd.arrays["REF_forces"]
    odd.info["REF_energy"] += 1.0
    model, read = fitted(frames)
    scoring = scores_without_suspects(model, read)
    frame = read.of("high")[11]
    assert frame in scoring.frames
    errors = [s.error for s in scoring.scores if s.kind == "moment" and s.frame is frame]
    assert len(errors) == 4
    np.testing.assert_allclose(errors, -1.0, atol=0.3)  # Bohr magnetons
    assert other_moments(scoring.scores) == [frame]


def test_a_fit_that_fails_leaves_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object) -> MultiFidelityGP:
        raise NumericalError("no factor")

    model, read = fitted(with_hidden_energy())
    monkeypatch.setattr("mfgp.doctor.rounds._fitted_again", failing)
    scoring = scores_without_suspects(model, read)
    assert scoring.scores is scoring.first
    assert suspects(scoring.scores)
    (finding,) = scoring.findings()
    assert "that fit failed (no factor)" in finding.message
