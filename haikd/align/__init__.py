"""Alignment: which layers form a pair, and how a pair comes to one shape."""
