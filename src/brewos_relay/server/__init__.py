"""The composition root: everything put together into one process."""
