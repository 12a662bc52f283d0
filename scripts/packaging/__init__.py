"""Building the packages of certfs: `scripts/package` runs this."""
