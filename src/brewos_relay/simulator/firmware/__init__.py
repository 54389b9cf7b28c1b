"""A machine's own end of the wire, byte for byte: its request, its frames, its MessagePack."""
