"""What a simulated machine is made of: boilers, shots, settings, commands. No I/O and no clock of its own."""
