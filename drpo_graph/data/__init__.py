"""Package data: the bundled training queries."""
