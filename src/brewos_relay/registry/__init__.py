"""Durable state in SQL: devices, accounts, login sessions, tokens, shares and the change feed."""
