"""One module for each version of the tables; once released, they stay as they are."""
