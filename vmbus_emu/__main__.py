"""``python -m vmbus_emu``: the command line."""

from vmbus_emu.cli.main import main

if __name__ == "__main__":
    main()
