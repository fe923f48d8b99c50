"""The commands of `exo`, one file each."""
