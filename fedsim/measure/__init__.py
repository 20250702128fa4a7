"""What is counted and what is measured about a client, a round and a run."""
