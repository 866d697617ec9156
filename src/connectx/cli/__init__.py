"""The command line: one module per subcommand, listed in :data:`connectx.cli.main.COMMANDS`."""
