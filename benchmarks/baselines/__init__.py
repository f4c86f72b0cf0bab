"""Other people's methods, to measure ours against."""
