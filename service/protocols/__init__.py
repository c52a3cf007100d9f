"""Protocols: how clients ask. Each is a file, and a line in PROTOCOLS."""
