"""Observability: what is counted, logged and traced of each request, and where it is read."""
