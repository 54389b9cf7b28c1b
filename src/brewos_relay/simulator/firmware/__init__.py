"""The firmware's end of a connection, byte for byte: its requests, frames and MessagePack."""
