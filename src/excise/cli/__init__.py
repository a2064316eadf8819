"""The command line: one file per command, errors rendered once, data on stdout and everything else on stderr."""
