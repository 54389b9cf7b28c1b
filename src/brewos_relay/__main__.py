"""`python -m brewos_relay` is the command `brewos-relay`."""

from brewos_relay.cli import main

if __name__ == "__main__":
    main()
