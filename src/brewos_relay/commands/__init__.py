"""The commands of `brewos-relay`."""

# A module is named for its command or group. Commands import their dependencies when they run, so that
# `--help` starts fast. The map:
#
#   serve, doctor, database, pairing, user, token, device, device_users, device_activity
#   tail_and_send    an app on the command line; run_client does the work, message_lines formats messages
#   simulate         also `demo`; run_simulation and run_demo do the work
#   parameters       types of parameters, and options that several commands have
#   registry_access  how commands open the registry
#   output           standard streams, tables and JSON
#   failures         exit codes, and errors as one line on stderr
