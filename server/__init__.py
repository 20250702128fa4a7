"""The server's side of a federation, as a Flower app."""
