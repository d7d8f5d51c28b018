"""Was it right, and how fast: the judge and the report, pure functions of a run directory."""
