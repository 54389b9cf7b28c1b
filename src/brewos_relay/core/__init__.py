"""The reusable relay: sessions, peers and limits, without a transport."""
