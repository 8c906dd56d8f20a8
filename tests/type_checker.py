"""The run-time type checker of the tests."""

from beartype import BeartypeConf, beartype

# As PEP 484 and mypy have it, an int will do for a float.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
