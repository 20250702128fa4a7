"""The same apps deployed: a SuperLink, and a SuperNode for each client, in containers or not."""
