"""What is said between nodes: pure, without sockets, threads, clocks or randomness."""
