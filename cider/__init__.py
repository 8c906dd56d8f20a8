"""Machine-learned, nonlocal exchange-correlation functionals for PySCF and GPAW."""

from cider.functional import CiderFunctional
from cider.plugins.pyscf import hook as _pyscf_hook

__all__ = ["CiderFunctional"]

_pyscf_hook.install()
