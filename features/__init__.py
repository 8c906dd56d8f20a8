"""Descriptors of the density, as pure functions on arrays, and the linear maps that they need."""
