"""The system under test: a prediction market on PostgreSQL, which knows nothing of the harness."""

VERSION = "0.1.0"
