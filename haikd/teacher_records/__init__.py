"""A teacher's predictions, recorded once to be learned from without it."""
