"""The other two ends: devices and apps that talk to a relay."""
