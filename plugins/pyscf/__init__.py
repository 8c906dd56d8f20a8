"""PySCF: ``mf.xc = CiderFunctional(...)``."""
