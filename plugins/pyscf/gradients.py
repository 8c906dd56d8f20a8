"""Nuclear gradients of learned functionals in PySCF."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pyscf import lib
from pyscf.dft import numint
from pyscf.grad.rks import get_nlc_vxc, get_nlc_vxc_full_response, grids_response_cc
from pyscf.gto import CHARGE_OF, charge

from cider.conventions import GRADIENT_COMPONENTS
from cider.functional import CiderFunctional
from cider.plugins.pyscf.atomic_orbitals import AOBlock, map_ao_blocks
from cider.plugins.pyscf.density_matrices import eigenvectors
from cider.plugins.pyscf.learned_numint import Settings
from cider.plugins.pyscf.libxc import num_ingredients
from cider.plugins.pyscf.smoothed_density_matrix import sdmx_gradients


def with_learned_functional(gradients: Any) -> Any:
    """PySCF's gradients of a Kohn-Sham object, once they know what to do with its functional."""
    if not isinstance(gradients, CiderGradients):
        lib.set_class(gradients, (CiderGradients, gradients.__class__))
    return gradients


class CiderGradients:
    """In front of a gradients class of PySCF: exchange and correlation of a learned functional.

    PySCF evaluates functionals block by block; a nonlocal one needs the density on the whole grid
    before its potential anywhere.

    Learned functionals are steeper near nuclei than PBE. Without ``grid_response`` (PySCF's
    default) forces of a distorted water molecule at grid level 3 were off by 4e-3 Ha/bohr
    with x-sl-gga, 1e-3 with x-sl-mgga and 3e-5 with pbe0-x-nldf; PBE 3e-6, r2SCAN 1e-4. With it
    they are the derivatives of the energy.
    """

    __name_mixin__ = "Cider"

    def get_veff(self, mol: Any = None, dm: Any = None) -> Any:
        """Coulomb, exchange and correlation potential of the gradients (Ha/bohr), as in PySCF."""
        if not isinstance(self.base.xc, CiderFunctional):
            return super().get_veff(mol, dm)
        mol = self.mol if mol is None else mol
        dm = self.base.make_rdm1() if dm is None else dm
        vxc, by_grid = self._exchange_correlation(mol, (dm,) if dm.ndim == 2 else tuple(dm))
        if self.base.do_nlc():
            vv10, vv10_by_grid = self._vv10(mol, dm if dm.ndim == 2 else dm.sum(axis=0))
            vxc += vv10
            by_grid = None if by_grid is None else by_grid + vv10_by_grid
        coulomb = self.get_j(mol, dm)
        veff = vxc[0] + coulomb if dm.ndim == 2 else vxc + coulomb.sum(axis=0)
        # What extra_force of PySCF's classes adds for each atom.
        tags = {"aux": coulomb.aux.sum(axis=(0, 1))} if hasattr(coulomb, "aux") else {}
        return lib.tag_array(veff, exc1_grid=by_grid, **tags)

    def get_dispersion(
        self, disp: Any = None, with_3body: Any = None, verbose: Any = None
    ) -> Float[np.ndarray, "atom xyz"]:
        """Gradient (Ha/bohr) of the dispersion correction, as in PySCF."""
        if not isinstance(self.base.xc, CiderFunctional):
            return super().get_dispersion(disp, with_3body, verbose)
        disp = self.base.dispersion_model(disp)
        with lib.temporary_env(self, base=self.base.without_functional()):
            return super().get_dispersion(disp, with_3body, verbose)

    def _vv10(
        self, mol: Any, dm: Float[np.ndarray, "ao ao"]
    ) -> tuple[Float[np.ndarray, "xyz ao ao"], Float[np.ndarray, "atom xyz"] | None]:
        """As ``_exchange_correlation``, of a density matrix of both spins."""
        grids = self.base.nlcgrids if self.nlcgrids is None else self.nlcgrids
        if grids.coords is None:
            grids.build(with_non0tab=True)
        settings = mol, _with_nuclear_charges(grids), self.base.nlc, dm
        derivative = get_nlc_vxc_full_response if self.grid_response else get_nlc_vxc
        by_grid, vxc = derivative(self.base._numint, *settings)
        return vxc, by_grid

    def _exchange_correlation(
        self, mol: Any, dms: Sequence[Any]
    ) -> tuple[Float[np.ndarray, "spin xyz ao ao"], Float[np.ndarray, "atom xyz"] | None]:
        grids = self.base.grids if self.grids is None else self.grids
        max_memory = max(2000, self.max_memory * 0.9 - lib.current_memory()[0])
        integrator, functional = self.base._numint, self.base.xc
        settings = mol, grids, functional, dms, Settings(max_memory=max_memory)
        if self.grid_response:
            potential, by_weights, by_centers = integrator.potential_and_grid_derivative(*settings)
        else:
            potential = integrator.potential(*settings)
        of_density, of_matrices = np.split(potential, [num_ingredients(functional)], axis=1)
        vxc = gradient_matrices(mol, grids, of_density, max_memory)
        by_points = np.zeros((3, len(grids.weights)))
        sdmx = functional.learned.descriptors.sdmx
        if sdmx is not None:
            moving = mol, grids, sdmx, np.stack(dms), of_matrices
            own, by_points = sdmx_gradients(*moving, max_memory)
            vxc += own
        if not self.grid_response:
            return vxc, None
        by_points += point_gradients(mol, grids, dms, of_density, max_memory)
        return vxc, by_centers + atom_gradients(grids, by_weights, by_points)


def gradient_matrices(
    mol: Any,
    grids: Any,
    potential: Float[np.ndarray, "spin ingredient grid"],
    max_memory: float,
) -> Float[np.ndarray, "spin xyz ao ao"]:
    r"""What orbitals that move with their atoms do to the energy, points fixed (Ha/bohr).

    .. math:: V_{ij} = -\sum_g \sum_{ab} (\nabla\partial_a\phi_i)\, M_{ab}\, \partial_b\phi_j,
              \qquad \partial_0\phi = \phi

    The symmetric :math:`M` of a point has :math:`v^\rho` in its corner, :math:`v^{\nabla\rho}`
    beside it and :math:`\tfrac12 v^\tau` on the rest of the diagonal. The gradient of an atom is
    :math:`2 \sum_{ij} V_{ij} D_{ij}`, with i over its own orbitals.
    """
    vmat = np.zeros((len(potential), 3, mol.nao, mol.nao))

    def products(block: AOBlock) -> tuple[Int[np.ndarray, " active"], np.ndarray]:
        points, active, ao, room = block
        result = np.zeros((len(potential), 3, len(active), len(active)))
        for total, v in zip(result, potential[..., points], strict=True):
            for row, derivatives in enumerate(GRADIENT_COMPONENTS):
                right = _row_times_orbitals(v, row, ao, room)
                for by_direction, component in zip(total, derivatives, strict=True):
                    by_direction += ao[component] @ right
        return active, result

    for active, product in map_ao_blocks(products, mol, grids, max_memory, deriv=2):
        for index in np.ndindex(vmat.shape[:2]):
            vmat[index][np.ix_(active, active)] -= product[index]
    return vmat


def point_gradients(
    mol: Any,
    grids: Any,
    dms: Sequence[Any],
    potential: Float[np.ndarray, "spin ingredient grid"],
    max_memory: float,
) -> Float[np.ndarray, "xyz grid"]:
    r"""Derivative of the energy by where each point finds its density (Ha/bohr).

    .. math:: 2 \sum_k n_k \sum_{ab} (\nabla\partial_a\psi_k)\, M_{ab}\, \partial_b\psi_k

    with the eigenvectors of the density matrices, and M as in ``gradient_matrices``.
    """
    orbitals = [eigenvectors(np.asarray(dm)) for dm in dms]
    gradients = np.zeros((3, len(grids.weights)))

    def add(block: AOBlock) -> None:
        points, active, ao, _ = block
        for (occupations, coefficients), v in zip(orbitals, potential[..., points], strict=True):
            psi = coefficients[:, active] @ ao
            for row, derivatives in enumerate(GRADIENT_COMPONENTS):
                right = 2 * occupations[:, None] * _row_times_orbitals(v, row, psi).T
                gradients[:, points] += np.einsum("kg,xkg->xg", right, psi[list(derivatives)])

    list(map_ao_blocks(add, mol, grids, max_memory, deriv=2))
    return gradients


def _row_times_orbitals(
    v: Float[np.ndarray, "ingredient grid"],
    row: int,
    orbitals: Float[np.ndarray, "component orbital grid"],
    room: Float[np.ndarray, " any"] | None = None,
) -> Float[np.ndarray, "grid orbital"]:
    """A row of M times values and gradients of orbitals; in the ``room``, if there is one."""
    by_point = orbitals.transpose(0, 2, 1)  # as PySCF has it
    if row == 0:
        return numint._scale_ao(by_point[:4], v[:4], out=room)
    product = numint._scale_ao(by_point[0], v[row], out=room)
    if len(v) == 5:
        product += numint._scale_ao(by_point[row], v[4] / 2)
    return product


def atom_gradients(
    grids: Any,
    by_weights: Float[np.ndarray, " grid"],
    by_points: Float[np.ndarray, "xyz grid"],
) -> Float[np.ndarray, "atom xyz"]:
    """Derivative by the atoms, whose points move with them, from those by weights and points.

    Raises ``NotImplementedError`` where PySCF's derivatives are of other weights than the grid's.
    """
    gradients = np.zeros((grids.mol.natm, 3))
    derivatives = grids_response_cc(_with_nuclear_charges(grids))
    for atom, (coords, weights, weights_by_atoms) in enumerate(derivatives):
        own = np.flatnonzero(grids.atm_idx == atom)
        own = own[np.lexsort(grids.coords[own].T)]
        order = np.lexsort(coords.T)
        if len(own) != len(order) or not np.allclose(grids.weights[own], weights[order]):
            raise NotImplementedError(
                "grid_response: PySCF has no derivatives of the weights of this grid, which were "
                "pruned by density or are not its own; set mf.small_rho_cutoff = 0 or "
                "grid_response = False"
            )
        gradients += weights_by_atoms[:, :, order] @ by_weights[own]
        gradients[atom] += by_points[:, own].sum(axis=1)
    return gradients


def _with_nuclear_charges(grids: Any) -> Any:
    """Grids of the same atoms without effective core potentials.

    PySCF's weights follow the radii of the elements, but their derivatives those of elements with
    as many protons as a core potential leaves electrons.
    """
    mol = grids.mol.copy()
    mol._atm[:, CHARGE_OF] = [charge(symbol) for symbol in mol.elements]
    copy = grids.copy()
    copy.mol = mol
    return copy
