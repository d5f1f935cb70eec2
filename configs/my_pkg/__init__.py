"""A user's own package, outside of haikd."""
