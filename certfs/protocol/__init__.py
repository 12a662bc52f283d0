"""What the processes of certfs tell each other, and where they find each other. The standard library's alone."""
