"""What every room knows: types, checks, registries, masks and globs."""
