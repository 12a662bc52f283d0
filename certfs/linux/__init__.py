"""What Linux offers to processes that mount: the mount table, the mount calls, processes, sd_notify, a log."""
