"""The plane waves of one cell in another, strained one, for GPAW 22.8.

A plane wave is given by three integers n: G = 2 pi n B, B the inverse cell. GPAW takes those with G^2 / 2 below the
cutoff, so that a strain changes the set and the energy jumps. Its own PW(..., cell=...) scales the cutoff with the volume:
the set is then fixed for a change of volume, not for one of shape. Here the integers are chosen in the reference cell (wave
functions, density and potential alike), and only their lengths are those of the strained cell.
"""

from __future__ import annotations

import numpy as np


def hold(cell: np.ndarray, cutoff: float) -> None:
    """From now on GPAW's plane waves are those of `cell` [3, 3] Å at `cutoff` eV."""
    import gpaw.pw.density
    import gpaw.wavefunctions.pw
    from ase.units import Bohr, Ha
    from gpaw.pw.descriptor import PWDescriptor as Plain

    class Held(Plain):
        def __init__(self, ecut, gd, *args, **kwargs):
            reference = gd.new_descriptor(cell_cv=cell / Bohr)
            super().__init__(self.reference_cutoff(ecut, reference), reference, *args, **kwargs)
            turn = np.linalg.solve(reference.icell_cv, gd.icell_cv)  # reciprocal vectors, old to new
            self.gd = gd
            self.G_Qv, self.K_qv = self.G_Qv @ turn, self.K_qv @ turn
            lengths = [((self.G_Qv[Q] + K) ** 2).sum(1) for Q, K in zip(self.myQ_qG, self.K_qv)]  # noqa: B905
            self.G2_qG = lengths

        def reference_cutoff(self, ecut, reference):
            return ecut

    class HeldDensity(Held):
        def reference_cutoff(self, ecut, reference):
            """GPAW's 2 E_cut (4 times that on the fine grid), or what the grid of the reference cell can hold."""
            wanted = 2 * cutoff / Ha
            wanted *= 4 if ecut > 2 * wanted else 1
            return min(wanted, 0.5 * np.pi**2 / (reference.h_cv**2).sum(1).max())

    gpaw.wavefunctions.pw.PWDescriptor = Held
    gpaw.pw.density.PWDescriptor = HeldDensity


def release() -> None:
    """GPAW's own choice again."""
    import gpaw.pw.density
    import gpaw.wavefunctions.pw
    from gpaw.pw.descriptor import PWDescriptor

    gpaw.wavefunctions.pw.PWDescriptor = gpaw.pw.density.PWDescriptor = PWDescriptor
