"""What can be seen of a running relay from outside: logs and metrics."""
