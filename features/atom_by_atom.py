from cider.features.atom_centred import atom_centred_convolution as atom_by_atom_convolution  # noqa: F401
