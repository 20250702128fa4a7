"""Privacy: differential privacy that an accountant vouches for, and leakage that is measured."""
