"""The configuration: what it accepts, and one readable line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from descriptors.config import SOAPConfig
from mfgp.config import PRESETS, BaselineConfig, FitConfig, FixedRho, ModelConfig, TrainingConfig, load_config
from mfgp.errors import ConfigError

FULL = """
preset: solid                    # optional: molecule | solid | oxide; what is given below overrides it
fidelities:                      # cheapest first; one entry is a single-level model
  - {name: nm,  train: [nm.extxyz]}
  - {name: mag, train: [mag.extxyz]}
keys: {energy: REF_energy, forces: REF_forces, stress: REF_stress}
descriptor: {r_cut: 5.0, n_max: 8, l_max: 6, sigma: 0.4, cutoff_width: 1.0, radial_scaling: {r0: 2.0, m: 4}}
model: {zeta: 4, n_inducing: 2000, rho: species}       # rho: scalar | species | {fixed: 1.0}
baselines:                       # optional, lowest rung of the ladder
  - {name: chgnet, from_level: nm, coefficient: {mean: 1.0, std: 0.3}}
training: {objective: evidence, calibrate: true}
seed: 0
device: auto
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("nm.extxyz", "mag.extxyz"):
        (tmp_path / name).write_text("1\n\nH 0 0 0\n")
    return tmp_path


def loaded(folder: Path, text: str, *overrides: str) -> FitConfig:
    (folder / "config.yaml").write_text(text)
    return load_config(folder / "config.yaml", overrides)


def error_of(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, *overrides)
    return str(caught.value)


def contains(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in {message!r}"


@pytest.mark.parametrize(("name", "read"), [("NO", "False"), ("on", "True"), ("1", "1")])
def test_names_that_yaml_takes_for_something_else(folder: Path, name: str, read: str) -> None:
    text = f"fidelities: [{{name: {name}, train: nm.extxyz}}]\n"
    contains(error_of(folder, text), f"fidelities.0.name: should be text, found {read}; in YAML, put it in quotes")
    quoted = loaded(folder, text.replace(f"name: {name}", f"name: '{name}'"))
    assert [level.name for level in quoted.fidelities] == [name]


def test_half_a_radial_scaling_has_the_default_for_the_other_half(folder: Path) -> None:
    text, default = "fidelities: [{name: a, train: nm.extxyz}]\n", SOAPConfig().radial_scaling
    assert default is not None
    for override, expected in (("r0=1.5", (1.5, default.m)), ("m=3", (default.r0, 3.0))):
        found = loaded(folder, text, f"descriptor.radial_scaling.{override}").descriptor.radial_scaling
        assert found is not None
        assert (found.r0, found.m) == expected
    assert FitConfig(descriptor={"radial_scaling": None}).descriptor.radial_scaling is None
    assert "unknown key" in error_of(folder, text, "descriptor.radial_scaling.n=1")


def test_the_documented_file_is_read(folder: Path) -> None:
    config = loaded(folder, FULL)
    assert config.levels == ("nm", "mag")
    assert config.fidelities[0].train == (folder / "nm.extxyz",)
    assert config.model == ModelConfig(zeta=4, n_inducing=2000, rho="species")
    assert config.descriptor.radial_scaling is not None
    assert config.descriptor.radial_scaling.m == 4
    assert config.baselines[0].from_level == "nm"
    assert config.training.calibrate
    assert config.device == "auto"


def test_defaults() -> None:
    config = FitConfig()
    assert (config.model.zeta, config.model.n_inducing, config.model.rho) == (4, 1000, "scalar")
    assert config.fidelities == ()
    training = config.training
    assert (training.noise_energy, training.noise_force, training.noise_virial) == (0.005, 0.05, 0.05)
    assert (training.n_optimise, training.max_iterations, training.optimise) == (600, 100, True)
    baseline = BaselineConfig(name="emt")
    assert (baseline.coefficient.mean, baseline.coefficient.std, baseline.from_level) == (1.0, 0.3, None)


def test_a_preset_gives_way_to_what_is_given(folder: Path) -> None:
    text = "preset: oxide\nfidelities: [{name: a, train: nm.extxyz}]\ndescriptor: {r_cut: 4.5, radial_scaling: {r0: 1.2}}\n"
    oxide, molecule = PRESETS["oxide"]["descriptor"], PRESETS["molecule"]
    config = loaded(folder, text)
    assert (config.descriptor.r_cut, config.descriptor.n_max, config.descriptor.l_max) == (
        4.5,
        oxide["n_max"],
        oxide["l_max"],
    )
    assert config.descriptor.radial_scaling is not None
    assert (config.descriptor.radial_scaling.r0, config.descriptor.radial_scaling.m) == (
        1.2,
        oxide["radial_scaling"]["m"],
    )
    python = FitConfig(preset="molecule", descriptor=SOAPConfig(r_cut=4.0), model=ModelConfig(zeta=3))
    expected = (4.0, 3, molecule["model"]["n_inducing"])
    assert (python.descriptor.r_cut, python.model.zeta, python.model.n_inducing) == expected
    assert python.descriptor.radial_scaling is not None
    assert python.descriptor.radial_scaling.m == molecule["descriptor"]["radial_scaling"]["m"]
    assert FitConfig(preset="oxide", descriptor={"radial_scaling": None}).descriptor.radial_scaling is None
    for name in PRESETS:
        assert FitConfig(preset=name).preset == name


def test_rho_in_its_three_forms(folder: Path) -> None:
    head = "fidelities: [{name: a, train: nm.extxyz}, {name: b, train: mag.extxyz}]\n"
    assert loaded(folder, head, "model.rho=species").model.rho == "species"
    assert loaded(folder, head, "model.rho={fixed: 1.0}").model.rho == FixedRho(fixed=1.0)
    assert loaded(folder, head, "model.rho.fixed=[0.5]").model.rho == FixedRho(fixed=(0.5,))
    assert FixedRho(fixed=1.0).values(3) == [1.0, 1.0, 1.0]
    assert FixedRho(fixed=(1.0, 0.5)).values(2) == [1.0, 0.5]
    contains(error_of(folder, head, "model.rho=1.0"), "model.rho", "scalar, species or {fixed: number}", "1.0")
    contains(error_of(folder, head, "model.rho={fixed: high}"), "model.rho.fixed", "number", "'high'")
    contains(error_of(folder, head, "model.rho={fixed: [1, 1]}"), "model.rho.fixed", "2 values for 2 levels", "give 1")


def test_overrides_are_yaml_values_at_dotted_keys(folder: Path) -> None:
    config = loaded(
        folder, FULL, "model.zeta=3", "baselines.0.coefficient.mean=0", "training.noise_force=1e-3", "device=cpu"
    )
    assert config.model.zeta == 3
    assert config.model.n_inducing == 2000
    assert config.baselines[0].coefficient.mean == 0
    assert config.training.noise_force == 1e-3
    assert config.device == "cpu"
    assert loaded(folder, FULL, "descriptor.radial_scaling=null").descriptor.radial_scaling is None
    settings = loaded(folder, FULL, "baselines.0.settings={r_outer: 1e0, flag: true}").baselines[0].settings
    assert settings == {"r_outer": 1.0, "flag": True}
    assert isinstance(settings["r_outer"], float)
    contains(error_of(folder, FULL, "model.zeta"), "'model.zeta'", "key=value")
    contains(error_of(folder, FULL, "seed.x=1"), "'seed.x=1'", "seed has no 'x'")
    contains(error_of(folder, FULL, "baselines.7.name=x"), "baselines has no '7'")
    contains(error_of(folder, FULL, "seed=[1"), "'seed=[1'", "not a YAML value")
    contains(error_of(folder, FULL, "model.zetta=3"), "model.zetta: unknown key; did you mean model.zeta?")


@pytest.mark.parametrize(
    "config",
    [
        FitConfig(),
        FitConfig(preset="oxide", model={"rho": {"fixed": [1.0, 0.5]}, "zeta": 2}, device="cpu"),
        FitConfig(
            fidelities=({"name": "a", "train": ["x.extxyz", "y.extxyz"]},),
            baselines=({"name": "zbl", "settings": {"r_outer": 2, "on": True, "mode": "fast", "x": 0.5}},),
            training=TrainingConfig(n_optimise=None, calibrate=True),
            keys={"energy": "E"},
        ),
    ],
)
def test_round_trips(config: FitConfig) -> None:
    assert FitConfig(**yaml.safe_load(config.to_yaml())) == config
    assert FitConfig.model_validate_json(config.model_dump_json()) == config
    assert FitConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        FitConfig().seed = 3


def test_every_mistake_has_its_line(folder: Path) -> None:
    message = error_of(
        folder,
        """
preset: oxyde
fidelities: [{name: nm, train: [nm.extxyz]}, {train: mag.extxyz}]
keys: {enrgy: E}
descriptor: {rcut: 3.0, r_cut: -1.0, n_max: many}
model: {zeta: 9, n_inducing: yes, rho: both}
baselines: [{name: zbl, coefficient: {std: 0}, settings: {x: [1]}}]
training: {objective: loo, noise_force: .inf}
zeta: 3
device: gpu
""",
    )
    lines = message.splitlines()
    assert lines[0] == f"{folder / 'config.yaml'}: 15 problems:"
    assert len(lines) == 16
    for part in (
        "preset: should be 'molecule', 'solid' or 'oxide', found 'oxyde'",
        "fidelities.1.name: missing",
        "keys.enrgy: unknown key; did you mean keys.energy? Known here: energy, forces, stress, virial",
        "descriptor.rcut: unknown key; did you mean descriptor.r_cut? Known here: r_cut, n_max",
        "descriptor.r_cut: should be greater than",
        "descriptor.n_max: should be a valid integer",
        "model.zeta: should be less than or equal to 8, found 9",
        "model.n_inducing: should be a number, found True",
        "model.rho: should be scalar, species or {fixed: number}, found 'both'",
        "baselines.0.coefficient.std: should be greater than 0",
        "baselines.0.settings: x should be a number",
        "training.objective: should be 'evidence', 'vfe' or 'cv', found 'loo'",
        "training.noise_force: should be a finite number",
        "zeta: unknown key; did you mean model.zeta? Known here: preset, fidelities",
        "device: should be 'auto', 'cpu' or 'cuda', found 'gpu'",
    ):
        assert sum(line.strip().startswith(part) for line in lines) == 1, f"{part} in\n{message}"


def test_relations_between_sections(folder: Path) -> None:
    message = error_of(
        folder,
        "fidelities: [{name: nm, train: nm.extxyz}, {name: nm, train: mag.extxyz}]\n"
        "baselines: [{name: zbl, from_level: nn}, {name: zbl}]\n",
    )
    contains(message, "fidelities.1.name: 'nm' is used twice", "baselines.1.name: 'zbl' is used twice")
    contains(message, "baselines.0.from_level: unknown fidelity 'nn'; known are nm")


def test_a_level_is_not_named_like_the_noise(folder: Path) -> None:
    message = error_of(folder, "fidelities: [{name: nm, train: nm.extxyz}, {name: noise, train: mag.extxyz}]\n")
    contains(message, "fidelities.1.name: a level is named 'noise'", "give it another name")
    FitConfig(fidelities=[{"name": "noise", "train": ["a.extxyz"]}])  # of a model file of before


def test_missing_training_files_and_where_they_were_looked_for(folder: Path) -> None:
    text = "fidelities: [{name: a, train: [nm.extxyz, no.extxyz]}, {name: b, train: data/none.extxyz}]"
    message = error_of(folder, text)
    contains(message, "2 problems", "fidelities.0.train: no file 'no.extxyz' in", str(folder), "relative to the config")
    contains(message, "fidelities.1.train: no file 'none.extxyz' in", str(folder / "data"))
    assert load_config(folder / "config.yaml", sources=False).levels == ("a", "b")
    contains(error_of(folder, "fidelities: [{name: a, train: []}]"), "fidelities.0.train", "at least 1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("descriptor: {r_cut: 5,0}", "descriptor.0: no name of a setting; a decimal comma? Numbers have a point"),
        ("fidelities: [{name: a, train: []}]", "fidelities.0.train: empty; give at least 1"),
        ("fidelities: {a: a.extxyz}", "fidelities: should be a list, an entry a line that begins with '- '"),
        ("preset: solid\ntraining: null", "training: should be a section with keys of its own, found None"),
    ],
)
def test_slips_of_yaml_are_told_in_words_of_yaml(folder: Path, text: str, said: str) -> None:
    contains(error_of(folder, text), said)


def test_files_that_are_no_configuration(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: no such file; looked in"):
        load_config(folder / "no.yaml")
    contains(error_of(folder, "seed: 1\nmodel: [1\ndevice: cpu\n"), "config.yaml line 3", "not valid YAML")
    contains(error_of(folder, "seed: 1\nseed: 2\n"), "config.yaml line 2", "'seed' is given twice")
    contains(error_of(folder, "- 1\n"), "a list where", "key: value")
    contains(error_of(folder, "# nothing\n"), "is empty", "key: value")
    contains(error_of(folder, "model: 3\n"), "config.yaml: model: should be", "found 3")
    contains(error_of(folder, "seed: 1\n", "baselines=zbl"), "baselines: should be a list, such as [zbl]")
    (folder / "config.yaml").write_bytes(b"\xef\xbb\xbfseed: 7\n")  # what Notepad calls UTF-8
    assert load_config(folder / "config.yaml").seed == 7
    (folder / "config.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(folder / "config.yaml")


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"modle": {}}, "modle: unknown key; did you mean model?"),
        ({"model": {"zetta": 3}}, "model.zetta: unknown key; did you mean model.zeta?"),
        ({"descriptor": {"sgima": 3}}, "descriptor.sgima: unknown key; did you mean descriptor.sigma?"),
        ({"descriptor": {"cutoff_width": 9.0}}, "cutoff_width = 9.0"),
        ({"r_cut": 3}, "r_cut: unknown key; did you mean descriptor.r_cut?"),
        ({"seed": -1}, "seed: should be greater than or equal to 0"),
        ({"seed": True}, "seed: should be a number"),
        ({"nothing_like_it": 1}, "nothing_like_it: unknown key. Known here: preset"),
    ],
)
def test_python_errors_read_like_those_of_a_file(wrong: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FitConfig(**wrong)
    contains(str(caught.value), part)
    assert isinstance(caught.value, ValueError)


def test_sections_built_in_python_raise_config_errors() -> None:
    with pytest.raises(ConfigError, match="zetta: unknown key; did you mean zeta"):
        ModelConfig(zetta=3)
    with pytest.raises(ConfigError, match=r"model\.rho\.fixed: 2 values for 2 levels; give 1"):
        FixedRho(fixed=(1.0, 2.0)).values(1)
