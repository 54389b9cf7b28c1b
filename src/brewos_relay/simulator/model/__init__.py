"""The model of an espresso machine: boilers, shots, settings, commands. No I/O and no clock of its own."""
