"""Other people's model servers, with the same classifier and nothing that detects: `make bench-peers`."""
