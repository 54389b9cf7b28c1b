"""Examining a relay from outside and within: what is wrong, and what to do about it."""
