"""Published methods, measured in the protocol of our own rows or on the same inputs."""
