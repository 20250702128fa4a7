"""Studies: one experiment over axes and seeds."""
