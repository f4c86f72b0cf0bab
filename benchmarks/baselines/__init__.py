"""Published methods, measured in the protocol of our own rows."""
