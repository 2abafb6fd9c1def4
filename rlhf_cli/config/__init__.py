"""Options of the commands: their schema, and how they are composed and checked."""
