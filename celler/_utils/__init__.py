"""Ground floor: messages, devices, processes, prefetching and the version."""
