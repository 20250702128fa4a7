"""The client's side of a federation, as a Flower app."""
