"""The reusable relay: sessions, peers and bounds, without any transport."""
