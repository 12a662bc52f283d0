"""The measurements of scripts/bench: certfs beside what its users would have otherwise, in one run.

``docs/performance.md`` says what each figure means. Everything here works on the real command, real mounts, real
stunnels and the real shell commands of a regeneration; nothing of ``certfs`` is imported.
"""
