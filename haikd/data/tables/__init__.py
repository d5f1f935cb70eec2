"""Data sets in tables: a row for each example, a column for each number."""
