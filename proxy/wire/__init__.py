"""What the bytes mean. Pure: bytes in, values out; no sockets, no clock."""
