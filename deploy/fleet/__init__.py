"""Groups on hosts: what `moebius-group` does (deploy/bin)."""
