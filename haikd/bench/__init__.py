"""The benchmark: haikd's training step against one written by hand.

`python -m haikd.bench` runs it.
"""
