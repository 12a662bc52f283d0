"""The process that tells configured readers that a bundle has changed (promise I21)."""
