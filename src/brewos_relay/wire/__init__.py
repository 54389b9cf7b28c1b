"""WebSocket on Trio: sockets, TLS, handshakes and frames."""
