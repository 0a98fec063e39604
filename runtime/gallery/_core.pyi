def features() -> list[str]:
    """Names of the instruction sets that can be used on this machine, best first; the last is `generic`."""
