"""The commands, one file each: parse flags, call `pipeline`, print what happened. No algorithm lives here."""
