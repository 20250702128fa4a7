"""One process a measurement: each module here runs one system and prints one JSON line."""
