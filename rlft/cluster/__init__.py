"""Ray: starting, placing, waiting, ending."""
