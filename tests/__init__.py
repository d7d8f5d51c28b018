"""Unit, integration, end to end, and the planted bugs that the checkers must see."""
