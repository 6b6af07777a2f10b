"""The environment kernel and its derivatives.

    k(x, x') = s^2 [z = z'] (q . q')^zeta,      x = (z, q),  |q| = 1               (Bartok et al., PRB 87, 184115 (2013))

q depends on the atoms' positions r (and on a strain). With t = dq/dr and t' = dq'/dr' at fixed r' and r,

    dk/dr         = zeta (q.q')^(zeta-1) t.q'
    d2k/(dr dr')  = zeta (q.q')^(zeta-1) t.t' + zeta (zeta-1) (q.q')^(zeta-2) (t.q') (q.t')

Observations are sums of such terms over centres: an energy is a sum of local energies, a force is minus the derivative
of that sum, a virial minus its derivative with respect to the strain. `functional_covariance` adds them up into the exact
prior covariance between the functionals of two structures; `functional_variances` is its diagonal for one structure.
Rows are ordered: energy, forces (atom-major, x y z), virial (xx yy zz yz xz xy).
"""

from __future__ import annotations

import gpytorch
import torch
from gpytorch.constraints import Positive
from torch import Tensor

from descriptors import Jacobian

PAIRS = {"cpu": 2**22, "cuda": 2**26}  # entries of what pairs of centres need, held at a time


class EnvironmentKernel(gpytorch.kernels.Kernel):
    """k(x, x') = outputscale [z = z'] (q . q')^zeta between environments.

    Inputs have shape [..., n, 1 + D]: the atomic number z of the centre, then its normalised descriptor q. `outputscale`
    (s^2, eV^2) is positive; its raw parameter is log s^2. `zeta` is a fixed integer >= 1.
    """

    has_lengthscale = False

    def __init__(self, zeta: int = 4, outputscale: float = 1.0) -> None:
        super().__init__()
        if zeta < 1 or int(zeta) != zeta:
            raise ValueError(f"zeta must be an integer >= 1, not {zeta!r}")
        self.zeta = int(zeta)
        self.register_parameter("raw_outputscale", torch.nn.Parameter(torch.zeros((), dtype=torch.float64)))
        self.register_constraint("raw_outputscale", Positive(transform=torch.exp, inv_transform=torch.log))
        self.outputscale = outputscale

    @property
    def outputscale(self) -> Tensor:
        """s^2 in eV^2, a 0-dimensional tensor."""
        return self.raw_outputscale_constraint.transform(self.raw_outputscale)

    @outputscale.setter
    def outputscale(self, value: float | Tensor) -> None:
        value = torch.as_tensor(value, dtype=self.raw_outputscale.dtype, device=self.raw_outputscale.device)
        self.initialize(raw_outputscale=self.raw_outputscale_constraint.inverse_transform(value))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        z1, q1 = x1[..., 0], x1[..., 1:]
        z2, q2 = x2[..., 0], x2[..., 1:]
        if diag:
            return self.outputscale * (z1 == z2) * (q1 * q2).sum(-1) ** self.zeta
        same = z1[..., :, None] == z2[..., None, :]
        return self.outputscale * same * (q1 @ q2.mT) ** self.zeta


def kernel(q1: Tensor, q2: Tensor, zeta: int) -> Tensor:
    """k without its outputscale, between descriptors of one species: [n1, D], [n2, D] -> [n1, n2]."""
    return (q1 @ q2.T) ** zeta


def power(x: Tensor, n: int) -> Tensor:
    """x^n for an integer n >= 0, always a new tensor, by multiplications: torch's own is 20 times slower from n = 4 on."""
    if n < 2:
        return x.clone() if n else torch.ones_like(x)
    half = power(x, n // 2)
    half.mul_(half)
    return half.mul_(x) if n % 2 else half


def kernel_slope(dot: Tensor, zeta: int) -> Tensor:
    """dk/d(q.q') = zeta (q.q')^(zeta-1)."""
    return zeta * dot ** (zeta - 1)


def kernel_curvature(dot: Tensor, zeta: int) -> Tensor:
    """d2k/d(q.q')2 = zeta (zeta-1) (q.q')^(zeta-2); zero for zeta = 1."""
    return zeta * (zeta - 1) * dot ** max(zeta - 2, 0)


def n_functionals(n_atoms: int) -> int:
    """Rows of a structure: energy, 3N forces, 6 virial components."""
    return 1 + 3 * n_atoms + 6


def derivative_rows(jacobian: Jacobian, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All derivatives of the descriptors of some centres, with the functional each belongs to.

    Returns (t [row, D], centre [row] position in `centres`, functional [row] index into the structure's rows). The sign
    of forces and virials (minus the derivative) is in t.
    """
    n_atoms, device = len(jacobian.features), centres.device
    position = torch.full((n_atoms,), -1, dtype=torch.long, device=device)
    position[centres] = torch.arange(len(centres), device=device)
    pairs = torch.nonzero(position[jacobian.centre] >= 0).squeeze(1)
    xyz = torch.arange(3, device=device)
    voigt = torch.arange(6, device=device)
    t = torch.cat([-jacobian.d_positions[pairs].flatten(0, 1), -jacobian.d_strain[centres].flatten(0, 1)])
    centre = torch.cat([position[jacobian.centre[pairs]].repeat_interleave(3), position[centres].repeat_interleave(6)])
    functional = torch.cat(
        [
            (1 + 3 * jacobian.atom[pairs][:, None] + xyz).flatten(),
            (1 + 3 * n_atoms + voigt).repeat(len(centres)),
        ]
    )
    return t, centre, functional


def functional_covariance(
    jacobian1: Jacobian, numbers1: Tensor, jacobian2: Jacobian, numbers2: Tensor, variance: dict[int, float], zeta: int
) -> Tensor:
    """Exact prior covariance between all functionals of two structures, [1+3N1+6, 1+3N2+6].

    `variance` maps an atomic number to the prior variance s^2 of a local energy of that species (eV^2). Units are those of
    the functionals (eV, eV/Å, eV) multiplied. Memory grows as the product of both structures' (centre, atom) pairs.
    """
    dtype, device = jacobian1.features.dtype, jacobian1.features.device
    out = torch.zeros(
        n_functionals(len(numbers1)), n_functionals(len(numbers2)), dtype=dtype, device=device
    )  # [functional1, functional2]
    for species, s2 in variance.items():
        c1 = torch.nonzero(numbers1 == species).squeeze(1)
        c2 = torch.nonzero(numbers2 == species).squeeze(1)
        if len(c1) == 0 or len(c2) == 0:
            continue
        q1, q2 = jacobian1.features[c1], jacobian2.features[c2]
        t1, i1, f1 = derivative_rows(jacobian1, c1)
        t2, i2, f2 = derivative_rows(jacobian2, c2)
        dot = q1 @ q2.T  # [centre1, centre2]
        slope, curvature = kernel_slope(dot, zeta), kernel_curvature(dot, zeta)
        tq, qt = t1 @ q2.T, q1 @ t2.T  # [row1, centre2], [centre1, row2]
        out[0, 0] += s2 * (dot**zeta).sum()
        out[0].index_add_(0, f2, s2 * (slope[:, i2] * qt).sum(0))
        out[:, 0].index_add_(0, f1, s2 * (slope[i1] * tq).sum(1))
        block = slope[i1][:, i2] * (t1 @ t2.T) + curvature[i1][:, i2] * tq[:, i2] * qt[i1]  # [row1, row2]
        half = torch.zeros(len(out), len(f2), dtype=dtype, device=device).index_add_(0, f1, block)
        out.index_add_(1, f2, half, alpha=s2)
    return out


def functional_variances(jacobian: Jacobian, numbers: Tensor, species: tuple[int, ...], zeta: int) -> Tensor:
    """Prior variance of every functional of a structure at unit s^2, split by central species: [1+3N+6, species].

    The diagonal of `functional_covariance`, from a Jacobian of all centres.
    """
    whole = collective_variances(jacobian.features, jacobian.d_strain, numbers, species, zeta)
    return torch.cat([whole[:1], force_variances(jacobian, numbers, species, zeta), whole[1:]])


def force_variances(jacobian: Jacobian, numbers: Tensor, species: tuple[int, ...], zeta: int) -> Tensor:
    """Those of the forces, [3N, species]; zero for atoms that the Jacobian has nothing of.

    For the force on an atom only the pairs of centres that both see that atom count.
    """
    n = len(numbers)
    out = jacobian.features.new_zeros(n, 3, len(species))
    position = torch.empty(n, dtype=torch.long, device=numbers.device)  # of an atom among the centres of the Jacobian
    position[jacobian.centres] = torch.arange(len(jacobian.centres), device=numbers.device)
    for column, z in enumerate(species):
        of_species = torch.nonzero(numbers[jacobian.centre] == z).squeeze(1)
        order = of_species[torch.argsort(jacobian.atom[of_species], stable=True)]
        atoms, counts = torch.unique_consecutive(jacobian.atom[order], return_counts=True)
        for atom, pairs in zip(atoms.tolist(), torch.split(order, counts.tolist()), strict=True):
            q = jacobian.features[position[jacobian.centre[pairs]]]
            out[atom, :, column] = _variance(jacobian.d_positions[pairs], q, q @ q.T, zeta)
    return out.flatten(0, 1)


def collective_variances(q: Tensor, strain: Tensor, numbers: Tensor, species: tuple[int, ...], zeta: int) -> Tensor:
    """Those of the energy and of the virial, [7, species], from q [N, D] and dq/d(strain) [N, 6, D] of all centres; NaN for
    the virial where dq/d(strain) is unknown, [0, 6, D].

    Every pair of centres of a species counts: the cost grows as N^2, the memory does not.
    """
    out = q.new_full((7, len(species)), torch.nan)
    for column, z in enumerate(species):
        centres = torch.nonzero(numbers == z).squeeze(1)
        out[0, column] = energy_variance(q[centres], zeta)
        if len(strain):
            out[1:, column] = _virial_variances(strain[centres], q[centres], zeta)
    return out


def energy_variance(q: Tensor, zeta: int) -> Tensor:
    """sum_ij k(q_i, q_j) of centres of one species, q [N, D]: the prior variance of their energy at unit s^2."""
    total = q.new_zeros(())
    for rows in _rows_at_a_time(q, 2 * len(q)):
        total += power(q[rows] @ q.T, zeta).sum()
    return total


def _rows_at_a_time(q: Tensor, entries: int) -> tuple[Tensor, ...]:
    """Places of q's rows, as many at a time as PAIRS allows where one needs so many entries."""
    return torch.arange(len(q), device=q.device).split(max(1, PAIRS[q.device.type] // max(entries, 1)))


def _virial_variances(t: Tensor, q: Tensor, zeta: int) -> Tensor:
    """`_variance` of collective motions of centres of one species, a few i at a time: t [N, 6, D], q [N, D] -> [6]."""
    out = q.new_zeros(6)
    for rows in _rows_at_a_time(q, 14 * len(q)):
        mine, dot = t[rows], q[rows] @ q.T  # [i, 6, D], [i, j]
        out += ((kernel_slope(dot, zeta) @ t.flatten(1)).view_as(mine) * mine).sum((0, 2))
        tq = (mine.flatten(0, 1) @ q.T).view(len(rows), 6, len(q))  # t_i . q_j
        tq *= kernel_curvature(dot, zeta)[:, None, :]
        qt = (t.flatten(0, 1) @ q[rows].T).view(len(q), 6, len(rows))  # [j, 6, i] t_j . q_i
        out += tq.mul_(qt.permute(2, 1, 0)).sum((0, 2))
    return out


def _variance(t: Tensor, q: Tensor, dot: Tensor, zeta: int) -> Tensor:
    """sum_ij [ slope_ij t_i.t_j + curvature_ij (t_i.q_j)(q_i.t_j) ]: t [i, c, D], q [i, D], dot [i, i] -> [c]."""
    tc = t.transpose(0, 1)  # [c, i, D]
    tq = tc @ q.T  # [c, i, j]  t_i . q_j
    terms = kernel_slope(dot, zeta) * (tc @ tc.mT) + kernel_curvature(dot, zeta) * tq * tq.mT
    return terms.sum((1, 2))
