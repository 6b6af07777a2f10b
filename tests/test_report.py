"""Plots: the numbers in them, that they are complete files, and that they touch no global state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from mfgp import DataError
from mfgp.evaluation import Comparison, Evaluation
from mfgp.report import (
    PLOTS,
    binned_rmse,
    calibration,
    coverage,
    error_against_std,
    learning_curve,
    parity,
    write_figure,
    write_plots,
)


def compared(n: int, size: float, width: float, seed: int = 0, true_width: float = 1.0) -> Comparison:
    """Labels whose errors are draws of `true_width` times the stated std."""
    rng = np.random.default_rng(seed)
    label, std = size * rng.normal(size=n), width * rng.lognormal(size=n, sigma=0.5)
    return Comparison(label, label + true_width * std * rng.normal(size=n), std)


def evaluation(n_forces: int, stress: bool = True) -> Evaluation:
    part = compared(60, 0.01, 0.001) if stress else None
    species = np.full(n_forces, 13)
    return Evaluation("mag", 10, 200, compared(10, 0.02, 0.003), compared(n_forces, 1.0, 0.1), part, species)


def test_coverage_is_the_share_inside_the_interval():
    data = Comparison(np.zeros(5), np.array([0.1, -0.5, 1.0, -1.7, 2.5]), np.ones(5))
    # half widths of the central intervals: 0.674490 (50 %), 1.281552 (80 %), 1.959964 (95 %)
    assert_allclose(coverage(data, np.array([0.0, 0.5, 0.8, 0.95, 1.0])), [0, 0.4, 0.6, 0.8, 1.0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("true_width", "side"), [(1.0, 0), (0.5, 1), (2.0, -1)])
def test_calibrated_stds_follow_the_diagonal(true_width: float, side: int):
    expected = np.linspace(0.1, 0.9, 9)
    gap = coverage(compared(20000, 1.0, 0.1, true_width=true_width), expected) - expected
    if side == 0:
        assert np.abs(gap).max() < 0.015
    else:
        assert (side * gap > 0.04).all()  # above: under-confident; below: over-confident


def test_binned_rmse_compares_like_with_like():
    std, rmse = binned_rmse(compared(50000, 1.0, 0.1), 5)
    assert (np.diff(std) > 0).all()
    assert_allclose(rmse / std, 1.0, rtol=0, atol=0.05)


@pytest.mark.parametrize("plot", PLOTS.values(), ids=list(PLOTS))
@pytest.mark.parametrize("n_forces", [90, 6000], ids=["points", "density"])
def test_every_kind_of_label_is_drawn(plot, n_forces: int):
    figure = plot(evaluation(n_forces))
    assert isinstance(figure, Figure)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    if plot is calibration:
        assert [text.get_text().split(":")[0] for text in figure.axes[0].get_legend().get_texts()] == [
            "energy",
            "forces",
            "stress",
        ]
    else:
        assert [title.split(",")[0] for title in titles] == ["energy", "forces", "stress"]
        assert all("mag" in title for title in titles)
    without = plot(evaluation(n_forces, stress=False))
    assert not [ax for ax in without.axes if ax.get_title().startswith("stress")]


def test_parity_shows_labels_against_predictions():
    data = evaluation(90)
    points = parity(data).axes[0].containers[0].lines[0]
    assert_allclose(points.get_xdata(), data.energy.label, rtol=0, atol=0)
    assert_allclose(points.get_ydata(), data.energy.predicted, rtol=0, atol=0)
    (note,) = [text.get_text() for text in parity(data).axes[0].texts]
    assert f"MAE {1e3 * data.energy.scores.mae:.3g} meV/atom" in note
    assert "bars: one std" in note


def test_errors_against_std_are_in_the_unit_of_the_table():
    data = evaluation(90)
    ax = error_against_std(data).axes[1]
    assert "(meV/Å)" in ax.get_xlabel()
    assert "(meV/Å)" in ax.get_ylabel()
    large = replace(
        data, forces=Comparison(*(10 * v for v in (data.forces.label, data.forces.predicted, data.forces.std)))
    )
    ticks = error_against_std(large).axes[1].get_xticklabels()
    assert any(float(t.get_text()) >= 1000 for t in ticks)
    assert not any("e" in t.get_text() for t in ticks)  # 1000, not 1e+03
    points = ax.lines[0]
    assert_allclose(10 ** np.asarray(points.get_xdata()), 1e3 * data.forces.std, rtol=1e-12)


def test_perfect_predictions_and_single_labels_can_be_drawn(tmp_path: Path):
    one = Comparison(np.array([-3.0]), np.array([-3.0]), np.array([0.1]))
    data = Evaluation(
        "top level/2", 1, 2, one, Comparison(np.zeros(3), np.zeros(3), np.full(3, 0.1)), None, np.full(3, 1)
    )
    paths = write_plots(data, tmp_path)
    assert [p.name for p in paths] == [f"top_level_2_{name}.png" for name in PLOTS]


def test_plots_are_complete_files(tmp_path: Path):
    for path in write_plots(evaluation(90), tmp_path / "new" / "folder"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.read_bytes()[-8:-4] == b"IEND"
    assert not list((tmp_path / "new" / "folder").glob(".*"))


def test_a_failed_plot_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_figure(error_against_std(evaluation(90)), tmp_path / "plot.png")
    before = path.read_bytes()

    def half(self: Figure, file: Path, **kwargs: object) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        write_figure(Figure(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_plot_is_an_error(tmp_path: Path):
    nothing = Comparison(np.zeros(0), np.zeros(0), np.zeros(0))
    with pytest.raises(DataError, match="no label"):
        parity(Evaluation("mag", 1, 1, nothing, nothing, None, np.zeros(0, dtype=np.int64)))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        write_plots(evaluation(9), tmp_path / "file")


def test_learning_curve_sorts_by_size_and_refuses_what_it_cannot_show():
    figure = learning_curve({"joint": ([20, 5, 10], [0.1, 0.2, 0.15]), "alone": ([5, 10], [0.4, 0.3])})
    joint = figure.axes[0].lines[0]
    assert list(joint.get_xdata()) == [5, 10, 20]
    assert list(joint.get_ydata()) == [0.2, 0.15, 0.1]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["5", "10", "20"]
    for bad in (([5, 10], [0.1]), ([], []), ([5], [0.0])):
        with pytest.raises(ValueError, match="joint"):
            learning_curve({"joint": bad})


def test_no_global_plotting_state():
    before = dict(matplotlib.rcParams)
    for plot in PLOTS.values():
        assert plot(evaluation(90)).canvas.manager is None  # pyplot's figures have one
    assert dict(matplotlib.rcParams) == before
