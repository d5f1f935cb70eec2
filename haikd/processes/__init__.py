"""How many processes act as one run, and how they end together."""
