"""GPAW: ``GPAW(mode=PW(400), xc=CiderFunctional(...))``."""
