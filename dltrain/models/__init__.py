"""Network families: each maps (batch, *shape_in) to (batch, *shape_out) and knows nothing of data, ranks or files."""
