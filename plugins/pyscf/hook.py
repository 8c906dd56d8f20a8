"""Teach PySCF about ``CiderFunctional`` as soon as both packages are imported, in either order."""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

_TARGET = "pyscf.dft.rks"


def install() -> None:
    """Make ``mf.xc = CiderFunctional(...)`` work in this process.

    PySCF takes most of a second to import and is of no use to somebody who runs GPAW: where it
    is not loaded yet, this waits for the import of its Kohn-Sham module instead of causing it.
    Calling it again changes nothing.
    """
    if _TARGET in sys.modules:
        _patch()
    elif not any(isinstance(finder, _PatchingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PatchingFinder())


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


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds the one module with everybody else's finders, and patches it once it has run."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec


class _PatchingLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader):
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # PySCF and importlib.resources see the module as if it had been loaded without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _patch()
