"""The command line and what its commands compute; it may import every other room, and no room imports it."""
