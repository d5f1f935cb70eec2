"""The benchmark: haikd's training step against one written by hand.

It also compares divergences with `kl_divergence`. `python -m haikd.bench` runs
it.
"""
