"""The HTTP API and the web page, on Quart-Trio."""
