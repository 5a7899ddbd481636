"""The command line: one file per verb. Each parses and prints; what is done is done by the client and the machine.

Nobody imports this package but ``vmbus_emu.__main__`` and the console script. Loading it costs ``click`` and
nothing else of weight: a verb imports what it needs when it runs, so ``--help`` and shell completion are quick.
"""
