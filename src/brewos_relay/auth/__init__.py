"""Authentication: secrets, keys, tokens, identities, and the address of a caller. No SQL."""
