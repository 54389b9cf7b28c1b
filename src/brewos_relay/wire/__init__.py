"""WebSocket on Trio: from bytes to messages and back."""
