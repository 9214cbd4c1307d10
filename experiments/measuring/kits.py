"""The things that there is a kit for; the kits themselves are imported when something is examined."""

KITS = {
    kind: f"bigbatch.experiments.measuring.examine:{kind}_subject"
    for kind in ("algorithm", "strategy", "task", "model", "optimizer", "schedule")
}
"""Kind of thing -> "module:function" that makes its `Subject`."""
