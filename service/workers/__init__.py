"""Workers: several processes as one server, and the one that looks after them."""
