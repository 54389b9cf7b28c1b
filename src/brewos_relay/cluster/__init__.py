"""Many instances of the relay that act as one: who owns a device, and messages between instances."""
