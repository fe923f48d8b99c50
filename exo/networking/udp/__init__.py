"""Discovery on the local network by datagrams."""
