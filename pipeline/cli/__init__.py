"""The command line: finding a command, checking its arguments, help, configuration files."""
