"""Small run directories made by hand: a correct one, and one broken copy for every invariant."""
