"""How messages get from one loop to another: addresses, links, sessions and servers."""
