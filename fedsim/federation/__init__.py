"""The server's side of a federation: who is asked, what is accepted, how it becomes a model."""
