"""Teach PySCF about ``CiderFunctional`` as soon as both packages are imported, in either order."""

from typing import Any

from cider.when_imported import when_imported


def install() -> None:
    """Make ``mf.xc = CiderFunctional(...)`` work in this process.

    PySCF takes most of a second to import and is of no use to somebody who runs GPAW: where it
    is not loaded yet, this waits for the import of its Kohn-Sham module instead of causing it.
    Calling it again changes nothing.
    """
    when_imported("pyscf.dft.rks", _patch)


def _patch() -> None:
    from pyscf.dft.rks import KohnShamDFT

    if not isinstance(KohnShamDFT.__dict__.get("xc"), FunctionalAttribute):
        KohnShamDFT.xc = FunctionalAttribute()


class FunctionalAttribute:
    """The attribute ``xc`` of every Kohn-Sham class of PySCF.

    The value stays in the ``__dict__`` of the object, where PySCF's copies and conversions expect
    it; what an assignment does is in ``kohn_sham``.
    """

    def __get__(self, mf: Any, owner: type | None = None) -> Any:
        if mf is None:
            return self
        try:
            return mf.__dict__["xc"]
        except KeyError:
            raise AttributeError("xc") from None

    def __set__(self, mf: Any, xc: Any) -> None:
        # Not before: it imports PySCF's modules, one of which is being imported when this class
        # is put in place.
        from cider.plugins.pyscf.kohn_sham import assign_functional

        assign_functional(mf, xc)
