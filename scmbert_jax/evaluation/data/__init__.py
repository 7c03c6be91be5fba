"""Which cells are scored, on which scale, in which parts."""
