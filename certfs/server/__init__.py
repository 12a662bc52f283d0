"""W, the process that serves one mount: the only package that knows both the supervisor's side and the file system."""
