"""One module per command: parse options, make one call, print. Commands do not import each other."""
