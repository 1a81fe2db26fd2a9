"""The commands of ``moonflow``: their options, help and where each one is done."""
