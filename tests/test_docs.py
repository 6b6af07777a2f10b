"""README and docs: their code runs, their configuration loads, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ase.io import read, write

from mfgp.config import load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / folder / "README.md" for folder in ("benchmarks", "examples/lmfp")]
EXAMPLE = Path("examples/lmfp")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def small_lmfp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a few LMFP frames where the documentation has all of them."""
    (tmp_path / EXAMPLE).mkdir(parents=True)
    for level, count in (("nm", 6), ("mag", 4)):
        frames = [a for a in read(ROOT / EXAMPLE / f"lmfp_{level}.extxyz", ":") if a.info["split"] == "train"]
        for folder in (EXAMPLE, Path()):
            write(tmp_path / folder / f"lmfp_{level}.extxyz", frames[:count])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:too few structures to calibrate")
def test_readme_python_runs(small_lmfp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks(ROOT / "README.md", "python")).replace(
        'preset="oxide"', 'preset="oxide", model={"n_inducing": 60}'
    )
    assert "n_inducing" in code
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"-?\d+\.\d\d \+- \d+\.\d\d eV; largest std of a force \d+\.\d\d eV/Å", capsys.readouterr().out)
    assert (small_lmfp / "lmfp.mfgp").stat().st_size > 0


def test_documented_configuration_loads(small_lmfp: Path) -> None:
    (text,) = blocks(ROOT / "docs" / "configuration.md", "yaml")
    (small_lmfp / "config.yaml").write_text(text, encoding="utf-8")
    config = load_config(small_lmfp / "config.yaml")
    assert [f.name for f in config.fidelities] == ["nm", "mag"]
    assert config.baselines[0].name == "zbl"


def test_documented_findings_are_all_findings() -> None:
    """Names of the doctor's checks, each with a file that reports it."""
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    documented = set(
        re.findall(r"^\| ([a-z -]+) \| [a-z, ]+ \| .+ \| `(mfgp/[\w/]+\.py)` \|$", page, flags=re.MULTILINE)
    )
    code = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "mfgp").rglob("*.py")}
    reported = {(name, file) for file, text in code.items() for name in re.findall(r'about\([^,]+, "([^"]+)"', text)}
    assert len(reported) > 20
    assert documented == reported


def test_documented_settings_are_all_settings() -> None:
    (text,) = blocks(ROOT / "docs" / "configuration.md", "yaml")
    from mfgp import FitConfig

    default = FitConfig()
    for section in ("descriptor", "model", "training", "keys"):
        missing = [name for name in type(getattr(default, section)).model_fields if not re.search(rf"\b{name}:", text)]
        assert not missing, section


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_commands_exist() -> None:
    text = "\n".join(blocks(ROOT / "README.md", "bash"))
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    from typer.main import get_command

    from mfgp.cli import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    used = set(re.findall(r"^mfgp (\w+)", text, flags=re.MULTILINE))
    assert used >= {"fit", "evaluate", "predict", "info", "doctor"}
    assert used <= set(known)
