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

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator

from mfgp.baselines.coulomb import CoulombCalculator
from mfgp.baselines.zbl import ZBLCalculator
from mfgp.config import Setting
from mfgp.errors import ConfigError


def known_baselines() -> tuple[str, ...]:
    """Names that need no calculator from the caller."""
    return tuple(sorted(_REGISTRY))


def make_calculator(name: str, settings: Mapping[str, Setting] | None = None) -> Calculator:
    """Calculator of a registered name. Raises ConfigError for unknown names and settings, or a missing package."""
    if name not in _REGISTRY:
        raise ConfigError(f"no baseline named {name!r}; known are {', '.join(known_baselines())}.")
    factory = _REGISTRY[name]
    parameters = inspect.signature(factory).parameters
    known = [key for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    unknown = [key for key in settings or {} if key not in known]
    if unknown and len(known) == len(parameters):
        raise ConfigError(
            f"baseline {name!r} has no setting {', '.join(map(repr, unknown))}; known are {', '.join(known)}."
        )
    try:
        return factory(**dict(settings or {}))
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"baseline {name!r} with settings {dict(settings or {})}: {error}.{default_dtype_hint()}"
        ) from error


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


def _zbl(*, r_inner: float = 1.0, r_outer: float = 2.5) -> Calculator:
    return ZBLCalculator(r_inner=r_inner, r_outer=r_outer)


def _coulomb(*, smearing: float = 1.0, permittivity: float = 5.0, **charges: float) -> Calculator:
    return CoulombCalculator(charges, smearing, permittivity)


def _tblite(
    *,
    method: str = "GFN1-xTB",
    charge: float = 0.0,
    electronic_temperature: float = 300.0,
    max_iterations: int = 1000,
    accuracy: float = 0.01,
) -> Calculator:
    """Tight binding, GFN1-xTB or GFN2-xTB, of tblite; of a crystal the Gamma point alone. Kelvin; see tblite.ase.TBLite."""
    if method not in _TIGHT_BINDING:
        raise ValueError(f"no method {method!r}; known are {', '.join(_TIGHT_BINDING)}")
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


def _d3(*, method: str = "pbe", damping: str = "d3bj") -> Calculator:
    """Grimme's D3 dispersion of s-dftd3, with the parameters of a functional (pbe, pbesol, scan, r2scan, ...)."""
    if not isinstance(method, str):
        raise ValueError(f"method {method!r} is no name of a functional, such as pbe")
    if damping not in _DAMPINGS:
        raise ValueError(f"no damping {damping!r}; known are {', '.join(_DAMPINGS)}")
    with _package("d3", "d3"):
        from dftd3.ase import DFTD3
    calculator = DFTD3(method=method, damping=damping)
    calculator.calculate(Atoms("He"))  # an unknown functional is refused here
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
    with _package("mace", "mace"):
        from mace.calculators import mace_mp
    return _of_mace(mace_mp, model, device)


def _mace_off(*, model: str = "medium", device: str = "cpu") -> Calculator:
    """MACE-OFF for organic molecules: small, medium or large. Its weights have an academic licence (ASL)."""
    with _package("mace-off", "mace"):
        from mace.calculators import mace_off
    return _of_mace(mace_off, model, device)


def _of_mace(factory: Callable[..., Calculator], model: str, device: str) -> Calculator:
    """A pretrained MACE in float32. PyTorch's default dtype, which MACE sets, is put back."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", model) or Path(model).exists():
        raise ValueError(f"model {model!r} is no name of pretrained weights; pass a calculator with weights of a file")
    before = torch.get_default_dtype()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it announces downloads, and a licence
            return factory(model=model, device=device, default_dtype="float32")
    except RuntimeError as error:
        raise ValueError(
            f"{error}; is {model!r} one of mace-torch's names (small, medium, medium-mpa-0, ...)?"
        ) from error
    finally:
        torch.set_default_dtype(before)


def _sevennet(*, model_name: str = "7net-0", device: str = "cpu") -> Calculator:
    """SevenNet's pretrained potential, of those whose weights ship in its package (Materials Project, PBE(+U))."""
    if model_name not in _SEVENNETS:
        raise ValueError(f"no weights of {model_name!r} in SevenNet's package; known are {', '.join(_SEVENNETS)}")
    with _package("sevennet", "sevennet"):
        from sevenn.calculator import SevenNetCalculator
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No tensor product accelerator")  # of GPUs
        return SevenNetCalculator(model_name, device=device, modal=_SEVENNETS[model_name])


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


_TIGHT_BINDING = ("GFN1-xTB", "GFN2-xTB")
_DAMPINGS = ("d3bj", "d3zero", "d3bjm", "d3zerom", "d3op")
_SEVENNETS = {"7net-0": None, "7net-l3i5": None, "7net-mf-0": "PBE"}  # and the side of a model of several fidelities
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
