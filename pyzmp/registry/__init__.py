"""Who is there: the domain's directory and locks, the registry's own process, and each process's view of it."""
