"""Energy, electron number and potential matrix of a learned functional on PySCF's grids."""

import hashlib
from typing import Any

import numpy as np
from jaxtyping import Float
from pyscf import lib
from pyscf.dft import numint

from cider.density import Density
from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.functional import CiderFunctional
from cider.plugins.pyscf.atomic_orbitals import AOBlocks
from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.libxc import LibxcWithCider, libxc_energy_and_potential, needs_tau

NEGATIVE_CHARGE_LIMIT = 1e-2
"""Electrons of negative density that a density matrix may have.

Rounding leaves 1e-10 or less. Negative density carries no energy, so that a density matrix with
more of it than this would get a wrong one.
"""


class CiderNumInt(numint.NumInt):
    """PySCF's numerical integration, which also takes a ``CiderFunctional`` for ``xc_code``.

    It collects the density on the whole grid before the functional sees it, as nonlocal features
    need. The linear map of those features depends on the grid alone and is kept until it changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._convolution: tuple[Any, GaussianConvolution] | None = None

    @property
    def libxc(self) -> LibxcWithCider:
        """What answers PySCF's questions about a functional."""
        return LibxcWithCider()

    @libxc.setter
    def libxc(self, library: Any) -> None:
        raise NotImplementedError(
            f"a CiderFunctional takes its remainder from libxc, not from {library}: "
            "assign a string to mf.xc before choosing another library"
        )

    @property
    def omega(self) -> None:
        """No range separation."""
        return None

    @omega.setter
    def omega(self, omega: float | None) -> None:
        if omega is not None:
            raise NotImplementedError(
                f"range separation (omega={omega}) is not available with a learned functional: "
                "assign a string to mf.xc first"
            )

    def reset(self, mol: Any = None) -> "CiderNumInt":
        """Forget the convolution of the last grid."""
        self._convolution = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_convolution": None}

    def nr_rks(
        self,
        mol: Any,
        grids: Any,
        xc_code: Any,
        dms: Any,
        relativity: int = 0,
        hermi: int = 1,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electron number, energy (Ha) and potential matrix for closed shells.

        Shapes as in PySCF, for one density matrix or a list of them. Raises ``ValueError`` for a
        density matrix that is broken, ``NotImplementedError`` for a complex or spinor one.
        """
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_rks(mol, grids, xc_code, dms, relativity, hermi, max_memory, verbose)
        nelec, exc, vmat = self._integrate(mol, grids, xc_code, (dms,), hermi, max_memory)
        if vmat.shape[1] == 1:  # as PySCF does, also for a list of one
            return nelec[0, 0], exc[0], vmat[0, 0]
        return nelec[0], exc, vmat[0]

    def nr_uks(
        self,
        mol: Any,
        grids: Any,
        xc_code: Any,
        dms: Any,
        relativity: int = 0,
        hermi: int = 1,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """As ``nr_rks``, for a pair of density matrices (or of lists of them)."""
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_uks(mol, grids, xc_code, dms, relativity, hermi, max_memory, verbose)
        dms = numint._format_uks_dm(dms)
        nelec, exc, vmat = self._integrate(mol, grids, xc_code, dms, hermi, max_memory)
        if np.ndim(dms[0]) == 2:
            return nelec[:, 0], exc[0], vmat[:, 0]
        return nelec, exc, vmat

    nr_rks_vxc = nr_rks
    nr_uks_vxc = nr_uks

    def _integrate(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: tuple[Any, ...],
        hermi: int,
        max_memory: float,
    ) -> tuple[
        Float[np.ndarray, "spin set"],
        Float[np.ndarray, " set"],
        Float[np.ndarray, "spin set ao ao"],
    ]:
        """All of the above, with a spin axis in front; ``dms`` has one entry per spin."""
        for dm in dms:
            _check_density_matrix(mol, dm)
        if grids.coords is None:
            grids.build(with_non0tab=True)
        xctype = "MGGA" if needs_tau(functional) else "GGA"
        blocks = AOBlocks(self, mol, grids, max_memory)
        rho = self._density(mol, grids, blocks, dms, xctype, hermi)
        results = [self._energy_and_potential(mol, grids, functional, r) for r in rho]
        nelec = np.einsum("isg,g->si", rho[:, :, 0], grids.weights)
        vmat = self._potential_matrix(
            mol, grids, blocks, np.stack([potential for _, potential in results])
        )
        return nelec, np.array([energy for energy, _ in results]), vmat.swapaxes(0, 1)

    def _density(
        self, mol: Any, grids: Any, blocks: AOBlocks, dms: tuple[Any, ...], xctype: str, hermi: int
    ) -> Float[np.ndarray, "set spin ingredient grid"]:
        evaluators = [self._gen_rho_evaluator(mol, dm, hermi, False, grids) for dm in dms]
        num_sets = evaluators[0][1]
        ingredients = 5 if xctype == "MGGA" else 4
        rho = np.empty((num_sets, len(dms), ingredients, len(grids.weights)))
        for points, ao, mask in blocks:
            for spin, (make_rho, _, _) in enumerate(evaluators):
                for i in range(num_sets):
                    rho[i, spin, :, points] = make_rho(i, ao, mask, xctype)
        return rho

    def _energy_and_potential(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        rho: Float[np.ndarray, "spin ingredient grid"],
    ) -> tuple[float, Float[np.ndarray, "spin ingredient grid"]]:
        """Energy, and its derivative by rho, grad rho and tau at each point."""
        _check_density(rho, grids.weights)
        convolution = None
        nldf = functional.exchange.descriptors.nldf
        if nldf is not None:
            convolution = self._convolution_of(mol, grids, nldf)
        tau = rho[:, 4] if functional.needs_tau else None
        learned, by_density = functional.learned_energy_and_potential(
            Density(rho[:, 0], rho[:, 1:4], tau), grids.weights, convolution
        )
        energy, potential = libxc_energy_and_potential(functional, rho, grids.weights)
        potential[:, 0] += by_density.rho
        potential[:, 1:4] += by_density.grad_rho
        if by_density.tau is not None:
            potential[:, 4] += by_density.tau
        return energy + learned, potential

    def _potential_matrix(
        self,
        mol: Any,
        grids: Any,
        blocks: AOBlocks,
        potential: Float[np.ndarray, "set spin ingredient grid"],
    ) -> Float[np.ndarray, "set spin ao ao"]:
        r"""Derivative of the energy by each density matrix.

        .. math:: V_{ij} = \sum_g v^\rho \phi_i\phi_j + v^{\nabla\rho} \cdot \nabla(\phi_i\phi_j)
                  + \tfrac12 v^\tau \nabla\phi_i \cdot \nabla\phi_j
        """
        num_sets, num_spins, ingredients, _ = potential.shape
        vmat = np.zeros((num_sets * num_spins, mol.nao, mol.nao))
        from_tau = np.zeros_like(vmat) if ingredients == 5 else None
        potential = potential.reshape(-1, ingredients, potential.shape[-1])
        potential[:, 0] *= 0.5  # the sum with the transpose, at the end, doubles it
        if from_tau is not None:
            potential[:, 4] *= 0.5  # tau is half the squared gradient of the orbitals

        ao_loc = mol.ao_loc_nr()
        pair_mask = mol.get_overlap_cond() < -np.log(self.cutoff)
        # The screening of PySCF's nr_rks, which is tighter by 1e2 for products of orbitals.
        log_ratio = np.log(grids.cutoff * 1e2) / np.log(grids.cutoff)
        nbins = numint.NBINS * 2 - int(numint.NBINS * log_ratio)
        for points, ao, mask in blocks:
            scaled = None
            for i, v in enumerate(np.ascontiguousarray(potential[:, :, points])):
                scaled = numint._scale_ao_sparse(ao, v[:4], mask, ao_loc, out=scaled)
                numint._dot_ao_ao_sparse(
                    ao[0], scaled, None, nbins, mask, pair_mask, ao_loc, hermi=0, out=vmat[i]
                )
                if from_tau is not None:
                    numint._tau_dot_sparse(
                        ao, ao, v[4], nbins, mask, pair_mask, ao_loc, out=from_tau[i]
                    )
        vmat = lib.hermi_sum(vmat, axes=(0, 2, 1))
        if from_tau is not None:
            vmat += from_tau
        return vmat.reshape(num_sets, num_spins, mol.nao, mol.nao)

    def _convolution_of(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        key = _fingerprint(mol, grids, nldf)
        if self._convolution is None or self._convolution[0] != key:
            self._convolution = None  # before the new one takes its memory
            self._convolution = (key, becke_convolution(mol, grids, nldf))
        return self._convolution[1]


def _fingerprint(mol: Any, grids: Any, nldf: Nldf) -> str:
    """Of all that the convolution depends on, by value: PySCF changes grids in place."""
    digest = hashlib.blake2b()
    for array in (
        mol.atom_coords(),
        grids.coords,
        grids.weights,
        nldf.source_ladder.exponents,
        nldf.target_ladder.exponents,
    ):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check_density_matrix(mol: Any, dm: Any) -> None:
    dm = np.asarray(dm)
    if np.iscomplexobj(dm) or dm.shape[-1] != mol.nao:
        raise NotImplementedError(
            f"a learned functional needs real density matrices over the {mol.nao} orbitals of the "
            f"molecule, not {dm.dtype} of shape {dm.shape}: GKS, DKS and complex orbitals are not "
            "available yet, and the orbitals of another molecule or basis must be projected first"
        )
    if not np.isfinite(dm).all():
        raise ValueError(
            "the density matrix contains NaN or infinity: start the SCF from another guess, "
            "such as mf.kernel(mf.get_init_guess(key='minao')), or check what produced it"
        )


def _check_density(
    rho: Float[np.ndarray, "spin ingredient grid"], weights: Float[np.ndarray, " grid"]
) -> None:
    negative = -float(np.sum(weights * np.minimum(rho[:, 0], 0.0)))
    if negative > NEGATIVE_CHARGE_LIMIT:
        raise ValueError(
            f"the density is negative over {negative:.3g} electrons: the density matrix belongs "
            "to no electronic state; start the SCF from another guess or check what produced it"
        )
