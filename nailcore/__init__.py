"""The training core: specs, facts, networks, losses, data, training and metrics; imports no other room."""
