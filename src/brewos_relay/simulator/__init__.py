"""Simulated machines: a model of an espresso machine behind the firmware's end of a connection."""

# The map; arrows point down only.
#
#   fleet               many simulated machines in one process
#   simulated_device    one machine: power, registration, connections, pauses between them
#   device_protocol     the messages of one connection
#   status_reports      full status, delta or keepalive: which one is due
#   usage_patterns      the people who use a machine
#   connection_policy   how a machine connects and reconnects: as firmware does, or as the SDK does
#   timer_queue         one task for the timers of all machines
#   model               the machine itself: boilers, water, settings, commands; no I/O
#   firmware            the firmware's requests, WebSocket frames and MessagePack, byte for byte
