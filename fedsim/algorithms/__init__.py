"""Algorithms that Flower does not have: one file each, holding only what differs."""
