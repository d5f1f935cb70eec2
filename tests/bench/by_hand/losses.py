"""Losses alone."""
