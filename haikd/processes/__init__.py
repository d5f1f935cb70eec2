"""Many processes act as one run: they start, agree and end together."""
