"""What must hold whatever happens: one function an invariant, grouped by module."""
