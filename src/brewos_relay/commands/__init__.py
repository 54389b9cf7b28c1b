"""The commands of `brewos-relay`."""

# A module has the name of its command or group, and is light to import: what a command needs is imported when
# it runs. The work of commands that run Trio is in modules of their own, run_*.
