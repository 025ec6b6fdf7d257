"""One file per command: options -> one call -> print. No command knows another; work is done below."""
