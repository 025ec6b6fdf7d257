"""One file a command: options -> one call -> print. No command knows another; work is done below."""
