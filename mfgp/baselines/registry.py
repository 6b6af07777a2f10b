"""Calculators of baselines by name: what a configuration or a model file may ask for without code from the caller.

Names stand for calculators of this project, of ASE, or of a package that has to be installed; a network's weights come with
its package, or MACE's from where its package downloads them. A file of weights is code to whoever loads it, so no setting
is a path: fine-tuned networks come from Python.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from pydantic import Field, TypeAdapter, ValidationError

from mfgp.base.words import nearest, sentence
from mfgp.baselines.coulomb import CoulombCalculator
from mfgp.baselines.zbl import ZBLCalculator
from mfgp.config import Float, Int, Setting
from mfgp.errors import ConfigError


def known_baselines() -> tuple[str, ...]:
    """Names that need no calculator from the caller."""
    return tuple(sorted(_REGISTRY))


def make_calculator(name: str, settings: Mapping[str, Setting] | None = None) -> Calculator:
    """Calculator of a registered name. Raises ConfigError for unknown names and settings, or a missing package."""
    given = dict(settings or {})
    if name not in _REGISTRY:
        raise ConfigError(
            f"no baseline named {name!r}{nearest(name, _REGISTRY)} Known are {', '.join(known_baselines())}."
        )
    factory = _REGISTRY[name]
    if problems := list(_problems(factory, given)):
        raise ConfigError("\n".join(f"baseline {name!r}: {problem}" for problem in problems))
    try:
        return factory(**given)
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"baseline {name!r} with settings {given}: {sentence(error)}{default_dtype_hint()}"
        ) from error


def _problems(factory: Callable[..., Calculator], settings: Mapping[str, Setting]) -> Iterator[str]:
    """What is wrong with names and values of settings, by the annotations of the factory's parameters."""
    parameters = inspect.signature(factory, eval_str=True).parameters
    named = {key: p.annotation for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    others = [p.annotation for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    for key, value in settings.items():
        if key not in named and not others:
            yield f"no setting {key!r}{nearest(key, named)} Known are {', '.join(named)}."
            continue
        try:
            TypeAdapter(named[key] if key in named else others[0]).validate_python(value, strict=True)
        except ValidationError as error:
            (detail,) = error.errors()
            cause = detail.get("ctx", {}).get("error")
            should = cause or f"{detail['msg'].replace('Input should', 'should')}, found {value!r}"
            yield f"setting {key} {should}."


def default_dtype_hint() -> str:
    """Where a program has changed the default dtype that pretrained networks count on: what to do. Else empty."""
    if torch.get_default_dtype() == torch.float32:
        return ""
    return (
        f" Something in this program has made {torch.get_default_dtype()} PyTorch's default (MACE's calculators do), and "
        "pretrained networks count on float32: call torch.set_default_dtype(torch.float32) first."
    )


def _emt(*, asap_cutoff: bool = False) -> Calculator:
    from ase.calculators.emt import EMT  # a quarter of a second

    return EMT(asap_cutoff=asap_cutoff)


def _zbl(*, r_inner: Float = 1.0, r_outer: Float = 2.5) -> Calculator:
    return ZBLCalculator(r_inner=r_inner, r_outer=r_outer)


def _coulomb(*, smearing: Float = 1.0, permittivity: Float = 5.0, **charges: Float) -> Calculator:
    return CoulombCalculator(charges, smearing, permittivity)


def _tblite(
    *,
    method: Literal["GFN1-xTB", "GFN2-xTB"] = "GFN1-xTB",
    charge: Annotated[Float, Field(multiple_of=1)] = 0.0,  # others give energies without a meaning
    electronic_temperature: Annotated[Float, Field(ge=0)] = 300.0,
    max_iterations: Annotated[Int, Field(ge=1)] = 1000,
    accuracy: Annotated[Float, Field(gt=0)] = 0.01,
) -> Calculator:
    """Tight binding, GFN1-xTB or GFN2-xTB, of tblite; of a crystal the Gamma point alone. Kelvin; see tblite.ase.TBLite."""
    with _package("tblite", "tblite"):
        from tblite.ase import TBLite
    return TBLite(
        method=method,
        charge=charge,
        electronic_temperature=electronic_temperature,
        max_iterations=max_iterations,
        accuracy=accuracy,
        cache_api=False,  # else labels depend, in the fifth digit of a force, on what was calculated before
        verbosity=0,
    )


def _d3(*, method: str = "pbe", damping: Literal["d3bj", "d3zero", "d3bjm", "d3zerom", "d3op"] = "d3bj") -> Calculator:
    """Grimme's D3 dispersion of s-dftd3, with the parameters of a functional (pbe, pbesol, scan, r2scan, ...)."""
    with _package("d3", "d3"):
        import dftd3
        from dftd3.ase import DFTD3
    calculator = DFTD3(method=method, damping=damping)
    try:
        calculator.calculate(Atoms("He"))  # an unknown functional is refused here
    except RuntimeError as error:
        known = Path(dftd3.__file__).parent / "parameters.toml"
        raise ValueError(
            f"s-dftd3 knows no functional {method!r} with the damping {damping} ({error}); {known} lists those it knows"
        ) from error
    return calculator


def _chgnet(*, model_name: str = "0.3.0", device: str = "cpu") -> Calculator:
    """CHGNet's pretrained potential; its weights ship in its package. Energy per cell, stress in eV/Å^3, ASE's sign."""
    with _package("chgnet", "chgnet"):
        from chgnet.model.dynamics import CHGNetCalculator
        from chgnet.model.model import CHGNet
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its device
        model = CHGNet.load(model_name=model_name, use_device=device, verbose=False)
        return CHGNetCalculator(model, use_device=device, on_isolated_atoms="ignore")


def _chgnet_0_2(*, device: str = "cpu") -> Calculator:
    """CHGNet's earlier weights, trained on the same data: errors of its own, so a second column beside the first helps."""
    return _chgnet(model_name="0.2.0", device=device)


def _chgnet_r2scan(*, device: str = "cpu") -> Calculator:
    """CHGNet's weights after transfer to r2SCAN."""
    return _chgnet(model_name="r2scan", device=device)


def _mace(*, model: str = "medium-mpa-0", device: str = "cpu") -> Calculator:
    """MACE-MP and its successors, by the name that mace-torch has for them; downloaded by it at the first use."""
    _check_name(model)
    with _package("mace", "mace"):
        from mace.calculators import mace_mp
    return _of_mace(mace_mp, model, device)


def _mace_off(*, model: str = "medium", device: str = "cpu") -> Calculator:
    """MACE-OFF for organic molecules: small, medium or large. Its weights have an academic licence (ASL)."""
    _check_name(model)
    with _package("mace-off", "mace"):
        from mace.calculators import mace_off
    return _of_mace(mace_off, model, device)


def _check_name(model: str) -> None:
    """ValueError for what mace-torch could take for a file of weights."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", model):
        raise ValueError(f"model {model!r} is no name of pretrained weights; pass a calculator with weights of a file")
    if Path(model).is_file():
        raise ValueError(
            f"model {model!r} is a file in this folder, too, which mace-torch could load; run elsewhere, or pass a "
            "calculator with its weights"
        )


def _of_mace(factory: Callable[..., Calculator], model: str, device: str) -> Calculator:
    """A pretrained MACE in float32. PyTorch's default dtype, which MACE sets, is put back."""
    before = torch.get_default_dtype()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it announces downloads, and a licence
            return factory(model=model, device=device, default_dtype="float32")
    except (RuntimeError, ValueError) as error:
        cause = error.__cause__
        why = f"{error}" if cause is None else f"{error} ({cause})"
        if isinstance(cause, FileNotFoundError) or "find MACE model files" in why:  # it took the name for a file's
            why += f"; is {model!r} one of mace-torch's names (small, medium, medium-mpa-0, ...)?"
        raise ValueError(why) from error
    finally:
        torch.set_default_dtype(before)


def _sevennet(*, model_name: Literal["7net-0", "7net-l3i5", "7net-mf-0"] = "7net-0", device: str = "cpu") -> Calculator:
    """SevenNet's pretrained potential, of those whose weights ship in its package (Materials Project, PBE(+U))."""
    modal = "PBE" if model_name == "7net-mf-0" else None  # the side of a model of several fidelities
    with _package("sevennet", "sevennet"):
        from sevenn.calculator import SevenNetCalculator
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No tensor product accelerator")  # of GPUs
        return SevenNetCalculator(model_name, device=device, modal=modal)


def _sevennet_l3i5(*, device: str = "cpu") -> Calculator:
    """SevenNet with angular momenta to 3 and five layers: the most accurate here, three times the cost of the first."""
    return _sevennet(model_name="7net-l3i5", device=device)


def _sevennet_mf_0(*, device: str = "cpu") -> Calculator:
    """SevenNet trained on PBE(+U) and r2SCAN together, its PBE(+U) side."""
    return _sevennet(model_name="7net-mf-0", device=device)


@contextlib.contextmanager
def _package(name: str, extra: str) -> Iterator[None]:
    """Says how to install what a baseline needs, where an import fails."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"baseline {name!r} needs a package that is not installed ({error}); install it with "
            f"pip install -e '.[{extra}]', or pass a calculator, baselines={{{name!r}: calculator}}."
        ) from error


_REGISTRY: dict[str, Callable[..., Calculator]] = {
    "chgnet": _chgnet,
    "chgnet-0.2.0": _chgnet_0_2,
    "chgnet-r2scan": _chgnet_r2scan,
    "coulomb": _coulomb,
    "d3": _d3,
    "emt": _emt,
    "mace": _mace,
    "mace-off": _mace_off,
    "sevennet": _sevennet,
    "sevennet-l3i5": _sevennet_l3i5,
    "sevennet-mf-0": _sevennet_mf_0,
    "tblite": _tblite,
    "zbl": _zbl,
}
VACUUM = {name: 15.0 for name in _REGISTRY if name.startswith("chgnet")}  # Å; beyond its cutoff of 6 Å: as open space
VACUUM["tblite"] = 15.0  # it repeats slabs and wires in all directions
# its sums end at 31.8 Å; dftd3 1.x has wrong forces for wires, and for slabs whose open direction is not the third
VACUUM["d3"] = 16.0
OPEN_SPACE = ("tblite", "d3")  # know molecules as they are
