"""What changes in a PySCF Kohn-Sham object when its ``xc`` is a learned functional."""

import os
from typing import Any, NoReturn

import numpy as np
from pyscf import lib
from pyscf.dft.numint import NumInt
from pyscf.scf import rohf
from pyscf.soscf.newton_ah import _CIAH_SOSCF

from cider.functional import CiderFunctional
from cider.learned_functional import LearnedFunctional
from cider.plugins.pyscf.excitations import excitations_of_learned_functional
from cider.plugins.pyscf.gradients import with_learned_functional
from cider.plugins.pyscf.hessians import CiderHessian
from cider.plugins.pyscf.learned_numint import LearnedNumInt
from cider.plugins.pyscf.libxc import (
    answer_for_density_fitting,
    check_libxc_terms,
    raise_not_yet,
)
from cider.plugins.pyscf.numint import CiderNumInt
from cider.registry import registered_names

AUXILIARY_BASIS_OF = "PBE"
"""Density fitting chooses the auxiliary basis by functional: no exact exchange here either."""


def assign_functional(mf: Any, xc: Any) -> Any:
    """Do what ``mf.xc = xc`` means, and return ``mf``.

    A ``CiderFunctional`` puts ``CiderKohnSham`` in front of the class of the object; anything
    else takes it away again and leaves plain PySCF.
    """
    if isinstance(xc, CiderFunctional):
        _attach(mf, xc)
    else:
        _reject_lookalikes(xc)
        _detach(mf)
    mf.__dict__["xc"] = xc
    if "grids" in mf.__dict__:  # in its constructor PySCF assigns xc first
        mf.grids = mf.grids
    return mf


def _attach(mf: Any, functional: CiderFunctional) -> None:
    check_libxc_terms(functional)
    _require_supported(mf, functional)
    if isinstance(mf, CiderKohnSham):
        return
    answer_for_density_fitting()
    integrator = _learned_numint(mf, mf.__dict__.get("_numint"), functional)
    lib.set_class(mf, (CiderKohnSham, mf.__class__))
    mf.__dict__["_numint"] = integrator


def _detach(mf: Any) -> None:
    if isinstance(mf, CiderKohnSham):
        mf.__class__ = lib.drop_class(mf.__class__, CiderKohnSham)
        own = mf.__dict__["_numint"]
        plain = next(kind for kind, ours in _numint_classes(mf).items() if ours is type(own))
        mf.__dict__["_numint"] = _in_place_of(own, plain)


def _learned_numint(mf: Any, numint: Any, functional: CiderFunctional) -> LearnedNumInt:
    """What integrates learned functionals where PySCF's ``numint``, by default, does others."""
    classes = _numint_classes(mf)
    if type(numint) in classes.values():
        return numint
    default = next(iter(classes))
    if numint is not None and type(numint) not in classes:
        raise NotImplementedError(
            f"{functional} cannot be integrated by {type(numint).__module__}."
            f"{type(numint).__name__}, only where {default.__module__}.{default.__name__} can"
        )
    return _in_place_of(numint, classes[default if numint is None else type(numint)])


def _in_place_of(numint: Any, kind: type) -> Any:
    """One of the other class, with the cell and the settings that multigrid integrations have."""
    if not hasattr(numint, "xc_with_j"):
        return kind()
    new = kind(numint.cell)
    new.mesh, new.xc_with_j = numint.mesh, numint.xc_with_j
    return new


def _numint_classes(mf: Any) -> dict[type, type]:
    """PySCF's own numerical integrations, the default first, and ours in their places."""
    if not _is_periodic(mf):
        return {NumInt: CiderNumInt}
    from pyscf.pbc.dft import numint
    from pyscf.pbc.dft.multigrid import MultiGridNumInt, MultiGridNumInt2
    from pyscf.pbc.scf.khf import KSCF

    from cider.plugins.pyscf.multigrid import CiderKMultiGridNumInt, CiderMultiGridNumInt
    from cider.plugins.pyscf.periodic import CiderKNumInt, CiderPeriodicNumInt

    if isinstance(mf, KSCF):
        multigrid, own = CiderKMultiGridNumInt, {numint.KNumInt: CiderKNumInt}
    else:
        multigrid, own = CiderMultiGridNumInt, {numint.NumInt: CiderPeriodicNumInt}
    return {**own, MultiGridNumInt: multigrid, MultiGridNumInt2: multigrid}


def _is_periodic(mf: Any) -> bool:
    return hasattr(mf, "cell")


def _reject_lookalikes(value: Any) -> None:
    """Refuse what was meant as a learned functional and PySCF would misread."""
    by_name = isinstance(value, str) and value.lower() in registered_names()
    if by_name or isinstance(value, LearnedFunctional | os.PathLike) or value is CiderFunctional:
        raise TypeError(
            f"mf.xc = {value!r} is not what PySCF runs: wrap it, as in "
            "mf.xc = CiderFunctional('x-nldf', correlation='GGA_C_PBE')"
        )


def _require_supported(mf: Any, functional: CiderFunctional) -> None:
    if not isinstance(mf, _supported_classes(mf)):
        raise NotImplementedError(
            f"{functional} runs with PySCF's RKS, UKS and ROKS of molecules and of cells at one or "
            f"more k-points, not yet with {type(mf).__module__}.{type(mf).__name__}: choose one of "
            "those, or a libxc functional such as xc='PBE'"
        )
    if isinstance(mf, _CIAH_SOSCF):
        raise NotImplementedError(
            f"assign {functional} before newton(): PySCF goes on with the functional of the object "
            "that newton() was called on"
        )


def _supported_classes(mf: Any) -> tuple[type, ...]:
    if not _is_periodic(mf):
        from pyscf.dft import rks, rks_symm, roks, uks, uks_symm

        return rks.RKS, uks.UKS, roks.ROKS, rks_symm.RKS, rks_symm.ROKS, uks_symm.UKS
    from pyscf.pbc.dft import (
        krks,
        krkspu,
        krkspu_ksymm,
        kroks,
        kuks,
        kukspu,
        kukspu_ksymm,
        rks,
        roks,
        uks,
    )

    restricted = krkspu.KRKSpU, krkspu_ksymm.KRKSpU
    if isinstance(mf, (*restricted, kukspu.KUKSpU, kukspu_ksymm.KUKSpU)):
        return ()
    return rks.RKS, uks.UKS, roks.ROKS, krks.KRKS, kuks.KUKS, kroks.KROKS


def _not_yet(feature: str) -> Any:
    def method(self: "CiderKohnSham", *args: Any, **kwargs: Any) -> NoReturn:
        raise_not_yet(feature, self.xc)

    method.__doc__ = f"Not available yet with a learned functional: {feature}."
    return method


def _require_molecule(mf: Any, feature: str) -> None:
    if _is_periodic(mf):
        raise_not_yet(f"{feature} of periodic cells are", mf.xc)


def _excitations(name: str) -> Any:
    def method(self: "CiderKohnSham", *args: Any, **kwargs: Any) -> Any:
        mf = self
        if _is_periodic(self):
            # Without exact exchange this changes nothing but PySCF's mind: it refuses to correct
            # orbital energies of classes that it does not know for the divergence of exchange.
            mf = self.copy().set(exxdiv=None)
        make = getattr(super(CiderKohnSham, mf), name, None)
        if make is None:
            raise NotImplementedError(
                f"PySCF has no {name} of {type(self).__name__}: take another of TDA and TDDFT, or "
                f"mf.to_uks().{name}() for ROKS, which has none"
            )
        return excitations_of_learned_functional(make(*args, **kwargs))

    method.__doc__ = f"PySCF's ``{name}``, with ``CiderExcitations`` in front."
    return method


class CiderKohnSham:
    """In front of a Kohn-Sham class of PySCF: what a learned functional does differently.

    What it cannot do yet raises ``NotImplementedError`` here by name. Whatever goes around these
    methods ends in ``LibxcWithCider``, which refuses to evaluate the functional point by point.
    """

    __name_mixin__ = "Cider"

    @property
    def _numint(self) -> LearnedNumInt:
        return self.__dict__["_numint"]

    @_numint.setter
    def _numint(self, numint: Any) -> None:
        self.__dict__["_numint"] = _learned_numint(self, numint, self.xc)

    @property
    def grids(self) -> Any:
        """As in PySCF, but of a cell, nonlocal density features have ``CrystalGrids``.

        They take the place of ``BeckeGrids``, which lack points, and have other weights.
        """
        return self.__dict__["grids"]

    @grids.setter
    def grids(self, grids: Any) -> None:
        if _is_periodic(self) and self.xc.learned.descriptors.nldf is not None:
            from cider.plugins.pyscf.crystal_grids import in_whole_shells

            grids = in_whole_shells(grids)
        self.__dict__["grids"] = grids

    def do_disp(self, disp: Any = None) -> bool:
        """As in PySCF; raises as ``dispersion_model``."""
        return self.without_functional().do_disp(self.dispersion_model(disp))

    def get_dispersion(
        self, disp: Any = None, with_3body: Any = None, verbose: Any = None
    ) -> float:
        """Energy (Ha) of the dispersion correction, as in PySCF; raises as ``dispersion_model``."""
        model = self.dispersion_model(disp)
        return float(self.without_functional().get_dispersion(model, with_3body, verbose))

    def dispersion_model(self, disp: Any = None) -> Any:
        """What PySCF understands without knowing the functional, such as "d4:pbe0", or False.

        By default that beside which the functional was trained, if any. Raises ``ValueError``
        where neither the functional nor ``mf.disp`` says whose parameters to take, and
        ``NotImplementedError`` for cells.
        """
        disp = self.disp if disp is None else disp
        disp = self.xc.learned.dispersion if disp is None else disp
        if not disp:
            return False
        _require_molecule(self, "dispersion corrections")
        if ":" in disp:
            return disp
        if self.xc.hybrid is None:
            raise ValueError(
                f"{self.xc} declares no parameters for the dispersion correction {disp!r}: say "
                f"whose to take, as in mf.disp = '{disp}:pbe0'"
            )
        return f"{disp}:{self.xc.hybrid}"

    def do_nlc(self) -> bool:
        """Whether VV10 is added; raises ``ValueError`` for another ``mf.nlc``."""
        if not self.nlc:
            return False
        if str(self.nlc).lower() != "vv10":
            raise ValueError(f"mf.nlc = {self.nlc!r} with {self.xc}: only 'vv10' is available")
        _require_molecule(self, "VV10 corrections")
        return True

    def without_functional(self) -> Any:
        """A copy for what PySCF does whatever the functional; it has none."""
        plain = self.copy()
        plain.xc = ""
        return plain

    def density_fit(self, *args: Any, **kwargs: Any) -> Any:
        """As in PySCF. This class stays in front, so that it keeps the last word."""
        plain = self.copy()
        plain.xc = AUXILIARY_BASIS_OF
        fitted = plain.density_fit(*args, **kwargs)
        fitted.xc = self.xc
        return fitted

    def gen_response(
        self, mo_coeff: Any = None, mo_occ: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in PySCF, but ROKS has the response of its spin densities, not that of their mean."""
        if super().gen_response is NotImplemented:
            raise NotImplementedError(
                "PySCF has no linear response of ROKS in periodic cells: take mf.to_uks()"
            )
        if _is_periodic(self):
            from cider.plugins.pyscf.periodic import require_all_k_points

            require_all_k_points(self, "linear response")
        if isinstance(self, rohf.ROHF):
            mo_coeff = self.mo_coeff if mo_coeff is None else mo_coeff
            mo_occ = self.mo_occ if mo_occ is None else mo_occ
            if np.ndim(mo_occ) == 1:
                mo_coeff, mo_occ = (mo_coeff, mo_coeff), (mo_occ > 0, mo_occ == 2)
        return super().gen_response(mo_coeff, mo_occ, *args, **kwargs)

    def nuc_grad_method(self) -> Any:
        """As in PySCF, with ``CiderGradients`` or ``CiderPeriodicGradients`` in front."""
        if _is_periodic(self):
            from cider.plugins.pyscf.periodic_gradients import gradients_of_cell

            return gradients_of_cell(self)
        return with_learned_functional(super().nuc_grad_method())

    Gradients = nuc_grad_method

    def Hessian(self) -> CiderHessian:
        """By differences of gradients; as in PySCF otherwise."""
        _require_molecule(self, "nuclear Hessians")
        return CiderHessian(self)

    TDA = _excitations("TDA")
    TDDFT = _excitations("TDDFT")
    TDDFTNoHybrid = CasidaTDDFT = _excitations("CasidaTDDFT")

    def reset(self, mol: Any = None) -> Any:
        """As in PySCF; also forgets the convolution of the old grid."""
        super().reset(mol)
        self._numint.reset()
        return self

    def _transfer_attrs_(self, dst: Any) -> Any:
        # PySCF copies the whole __dict__: let xc and the class of the new object agree.
        dst = super()._transfer_attrs_(dst)
        if "xc" in dst.__dict__:
            dst.xc = self.xc
        return dst

    def __reduce__(self) -> tuple[Any, ...]:
        # The class of this object was made at run time; pickle finds only PySCF's own by name.
        return assign_functional, (self.without_functional(), self.xc)

    to_gks = to_ghf = _not_yet("generalised Kohn-Sham is")
    to_gpu = _not_yet("gpu4pyscf is")
    define_xc_ = _not_yet("a user-defined libxc combination is")
