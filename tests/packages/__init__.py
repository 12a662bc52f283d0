"""What `scripts/package` has built, installed and used; `scripts/nightly packages` builds and runs them."""
