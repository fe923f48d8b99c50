"""What travels between nodes as bytes: the protobuf schema, its generated code, and the codecs."""
