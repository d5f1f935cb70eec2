"""What the report of a run shows, and how: `run.report` puts it together."""
