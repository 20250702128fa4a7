"""Attacks on what a client sends, as measurements: how much leaks, by activation.

``settings.py`` says what is sent and who looks at it, ``measure.py`` which attacks there are and
what each is told; ``rows.py`` and ``gallery.py`` hold what came of them, and need no torch.
"""
