"""Every option of the program (schema) and the way from a command line to them (load)."""
