"""Privacy: what is guaranteed, and what leaks."""
