"""Logs and metrics of a running relay."""
