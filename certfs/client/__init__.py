"""What commands do with instances: mount, find, ask, end, and clean up after them. The standard library's alone."""
