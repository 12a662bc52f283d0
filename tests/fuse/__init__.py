"""Tests of the adapter without a mount: tables, guard, and handlers called as the kernel calls them."""
